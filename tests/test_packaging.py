"""What users get: the wheel from an empty directory, and the light base on an old Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vitdeploy import __version__
from vitdeploy.artifact import Artifact

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_recipes_and_assets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"vitdeploy/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert len(shipped) >= 6
    assert shipped <= names
    assert {"vitdeploy/assets/digits.npz", "vitdeploy/assets/digits.safetensors", "vitdeploy/py.typed"} <= names
    assert {"vitdeploy/render/html/templates/page.html", "vitdeploy/render/html/templates/style.css"} <= names


def test_one_version_in_a_checkout(tmp_path: Path) -> None:
    stale = tmp_path / "vitdeploy-0.0.7.dist-info"  # as an editable install from before the last change has it
    stale.mkdir()
    (stale / "METADATA").write_text("Metadata-Version: 2.1\nName: vitdeploy\nVersion: 0.0.7\n")
    assert versions(sys.executable, tmp_path, ROOT) == [f"vitdeploy {__version__}", __version__, "0.0.7"]


def test_one_version_in_an_editable_install(tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=False)
    python = tmp_path / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps"]
    subprocess.run([*pip, "-e", ROOT], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    assert versions(python) == [f"vitdeploy {__version__}", __version__, __version__]


def test_one_version_in_a_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    assert versions(sys.executable, tmp_path) == [f"vitdeploy {__version__}", __version__, __version__]
    assert wheel.name == f"vitdeploy-{__version__}-py3-none-any.whl"


def versions(python: str | Path, *path: Path) -> list[str]:
    """What the command line, the package and its metadata say, with `path` before what is installed."""
    code = "import vitdeploy, importlib.metadata as m; print(vitdeploy.__version__, m.version('vitdeploy'), sep='\\n')"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"PYTHONPATH": os.pathsep.join(map(str, path))} if path else {}
    said = [
        subprocess.run([python, *words], cwd="/", env=variables, capture_output=True, text=True, check=True).stdout
        for words in (["-m", "vitdeploy", "--version"], ["-c", code])
    ]
    return "".join(said).splitlines()


def test_a_release_refuses_a_tag_that_is_not_its_version() -> None:
    done = subprocess.run([ROOT / ".ci" / "release", "v0.0.7"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"the tag is v0.0.7, but vitdeploy/version.py has {__version__}" in done.stderr


@pytest.mark.long
def test_the_demo_runs_from_the_wheel_in_an_empty_directory(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "vitdeploy", "run", "demo", "--json", "--quiet"],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    outcome = json.loads(done.stdout)
    assert outcome["gate"]["verdict"] == {0: "pass", 3: "invalid"}[done.returncode], done.stderr
    assert [p.name for p in empty.iterdir()] == ["digits-openvino-int8"]


def test_the_light_base_reads_and_judges_an_artifact(demo: Callable[..., Artifact], tmp_path: Path) -> None:
    out = shutil.copytree(demo(target="openvino").path, tmp_path / "digits")
    done = subprocess.run([ROOT / ".ci" / "light-base", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "SKIPPED" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert "light base: gate says invalid" in done.stdout  # nothing was limited, so nothing was decided
