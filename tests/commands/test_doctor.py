"""The commands that doctor prints for what is not installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomllib

from tests.cli.conftest import run
from vitdeploy import targets
from vitdeploy.commands import doctor as module
from vitdeploy.errors import TargetUnavailable
from vitdeploy.evidence import Availability
from vitdeploy.remote.near import commands
from vitdeploy.targets import tensorrt
from vitdeploy.targets.tensorrt import TensorRT

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that these modules are not there, and that vitdeploy was installed from `origin` (PEP 610)."""

    def set_up(without: tuple[str, ...], origin: dict[str, Any] | None = None) -> None:
        record = json.dumps(origin) if origin else None
        monkeypatch.setattr(module, "find_spec", lambda name: None if name in without else object())
        monkeypatch.setattr(module, "distribution", lambda name: SimpleNamespace(read_text=lambda file: record))
        monkeypatch.setattr(module.shutil, "which", lambda name: str(Path(sys.executable).parent / name))

    return set_up


def test_the_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert module._EXTRAS.keys() == project["optional-dependencies"].keys() - {"all"}


def test_each_extra_that_is_missing_has_one_line(installed: Callable[..., None]) -> None:
    installed(("openvino", "transformers"))
    assert module.doctor().install == {
        "openvino": "pip install 'vitdeploy[openvino]'",
        "hf": "pip install 'vitdeploy[hf]'",
    }
    lines = run("doctor").out.splitlines()
    assert "  openvino      pip install 'vitdeploy[openvino]'" in lines
    assert "  hf            pip install 'vitdeploy[hf]'" in lines


def test_a_gpu_that_a_target_can_use_is_listed_with_the_reason_why_not(no_gpu: None) -> None:
    diagnosis = module.doctor()
    assert diagnosis.targets.keys() == set(targets.names()), "devices have a key of their own"
    assert {name: list(devices) for name, devices in diagnosis.devices.items()} == {"onnxruntime": ["cuda", "trt-rtx"]}
    cuda = diagnosis.devices["onnxruntime"]["cuda"]
    assert (cuda.available, "no NVIDIA GPU" in cuda.why, "vitdeploy compile DIR" in cuda.fix) == (False, True, True)
    assert "onnxruntime --device cuda" in run("doctor").out


@pytest.mark.parametrize(
    ("why", "fix", "advice"),
    [
        ("no NVIDIA GPU", "Export a bundle here", "Choose another host or another --device."),
        ("it is the package for CPUs", "pip install x", "On orin: pip install x"),
    ],
)
def test_over_ssh_a_device_of_a_target_speaks_for_itself(why: str, fix: str, advice: str) -> None:
    here = Availability(available=True)
    doctor = SimpleNamespace(
        targets={"onnxruntime": here},
        devices={"onnxruntime": {"cuda": Availability(available=False, why=why, fix=fix), "trt-rtx": here}},
    )
    probe, host = SimpleNamespace(doctor=doctor), SimpleNamespace(name="orin")
    for device in (None, "CPU", "trt-rtx"):
        commands.require(probe, "onnxruntime", host, device)
    with pytest.raises(TargetUnavailable, match="orin cannot run onnxruntime on cuda") as caught:
        commands.require(probe, "onnxruntime", host, "cuda")
    assert caught.value.fix == advice


def test_nothing_is_printed_if_nothing_is_missing(installed: Callable[..., None]) -> None:
    installed(())
    assert module.doctor().install == {}
    assert "how to install it" not in run("doctor").out


def test_a_line_is_not_broken_in_a_narrow_terminal(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkout = tmp_path / ("long-" * 20)
    checkout.mkdir()
    installed(("openvino",), {"url": checkout.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.setenv("COLUMNS", "60")
    assert f"  openvino      pip install -e '{checkout}[openvino]'" in run("doctor").out.splitlines()


def test_a_checkout_and_a_wheel_are_installed_from_again(installed: Callable[..., None], tmp_path: Path) -> None:
    wheel = tmp_path / "vitdeploy-0.1.0-py3-none-any.whl"
    wheel.touch()
    installed(("jinja2",), {"url": wheel.as_uri(), "archive_info": {}})
    assert module.doctor().install == {"report": f"pip install '{wheel}[report]'"}
    installed(("jinja2",), {"url": tmp_path.as_uri(), "dir_info": {}})
    assert module.doctor().install == {"report": f"pip install '{tmp_path}[report]'"}
    wheel.unlink()
    installed(("jinja2",), {"url": wheel.as_uri(), "archive_info": {}})
    assert module.doctor().install == {"report": "pip install 'vitdeploy[report]'"}


def test_another_pip_on_the_path_is_not_taken(installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    installed(("jinja2",))
    monkeypatch.setattr(module.shutil, "which", lambda name: "/usr/bin/pip")
    assert module.doctor().install == {"report": f"{sys.executable} -m pip install 'vitdeploy[report]'"}


def test_a_jetson_gets_no_wheel_of_rtx_but_the_package_of_jetpack(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(("tensorrt_rtx", "tensorrt"))
    assert module.doctor().install.keys() == {"tensorrt-rtx"}
    host = module.environment.host()
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(module.environment, "host", lambda: host.model_copy(update={"jetpack": "36.4.7"}))
    assert module.doctor().install == {"tensorrt": "sudo apt-get install python3-libnvinfer"}


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without TensorRT. Return its folder of system packages."""
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: None)
    monkeypatch.setattr(tensorrt, "_SYSTEM", tmp_path)
    monkeypatch.setattr(tensorrt, "l4t_release", lambda: None)
    monkeypatch.setattr(tensorrt.sys, "prefix", str(tmp_path / "venv"))
    return tmp_path


def fixes() -> tuple[str, str]:
    """What to do, as export and as compile say it."""
    problems = TensorRT().unavailable(), TensorRT().unavailable_on_device()
    return tuple(problem.fix if problem else "" for problem in problems)


def test_compile_speaks_about_the_device_and_export_about_another_one(no_tensorrt: Path) -> None:
    export, compile_here = fixes()
    assert export == "Export a bundle here, and finish it on the device with: vitdeploy compile DIR"
    assert "Export" not in compile_here
    assert "On a Jetson: sudo apt-get install python3-libnvinfer" in compile_here
    assert "vitdeploy compile DIR --host ssh://USER@DEVICE" in compile_here


def test_a_jetson_is_told_to_install_it(no_tensorrt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "l4t_release", lambda: "36.4.7")
    assert fixes() == (TensorRT.install_hint, TensorRT.install_hint)


@pytest.mark.parametrize("folder", ["python3", f"python3.{sys.version_info.minor}"])
def test_a_virtual_environment_that_hides_jetpacks_package_is_named(no_tensorrt: Path, folder: str) -> None:
    (no_tensorrt / folder / "dist-packages" / "tensorrt").mkdir(parents=True)
    problem = TensorRT().unavailable()
    assert problem is not None
    assert problem.why.endswith(f"which the virtual environment {no_tensorrt / 'venv'} does not see")
    assert problem.fix.endswith(f"python3 -m venv --system-site-packages {no_tensorrt / 'venv'}")


@pytest.mark.parametrize(
    ("jetpack", "expected"), [("36.4.7", "On orin: see the system"), (None, f"On orin: {TensorRT.install_hint}")]
)
def test_over_ssh_a_jetson_speaks_for_itself(jetpack: str | None, expected: str) -> None:
    target = Availability(available=False, why="hidden", fix="see the system")
    doctor = SimpleNamespace(targets={"tensorrt": target}, devices={}, host=SimpleNamespace(jetpack=jetpack))
    with pytest.raises(TargetUnavailable) as caught:
        commands.require(SimpleNamespace(doctor=doctor), "tensorrt", SimpleNamespace(name="orin"))
    assert caught.value.fix == expected
