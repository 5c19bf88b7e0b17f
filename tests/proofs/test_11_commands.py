"""Point 11: what the commands print about names of files, classes, nodes and recipes, on stdout and stderr."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.cli.conftest import Ended, run, small_cnn
from tests.proofs.hostile import NAMES, find_harm
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.escaping import escape
from vitdeploy.frozen import replace

ROOT = Path(__file__).parents[2]


def check(ended: Ended, *codes: int) -> str:
    """Check that a command ended with one of these codes and printed nothing harmful; return what it printed."""
    assert ended.code in codes, ended.err
    printed = ended.out + ended.err
    assert find_harm(printed) == []
    assert "unexpected" not in printed
    assert "Traceback" not in printed
    return printed


def words() -> Iterator[str]:
    """Those of the names that can be a word of a command line."""
    for name in NAMES:
        with suppress(UnicodeEncodeError):
            if b"\0" not in os.fsencode(name) and not name.startswith("-"):
                yield name


def file_names() -> Iterator[str]:
    """Those of the names that can be in the name of a file."""
    return (name for name in words() if "/" not in name)


@pytest.fixture(scope="module")
def hostile(demo: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose classes, passes, notes and node names are chosen by somebody else."""
    folder = tmp_path_factory.mktemp("hostile") / "artifact"
    shutil.copytree(demo(target="onnxruntime").path, folder)
    manifest = artifacts.load(folder).manifest
    names = iter(NAMES * 2)
    labels = tuple(next(names).encode("utf-8", "replace").decode() for _ in manifest.labels)
    passes = tuple(replace(record, name=f"pass{NAMES[0]}\n::error::x") for record in manifest.passes)
    model = replace(manifest.model, spec=f"demo:digits{NAMES[1]}\n::error::x")
    versions = {"numpy\n::error::x": "\x1b[2J"}
    changed = replace(manifest, labels=labels, passes=passes, model=model, versions=versions)
    sites = folder / "sites.json"
    sites.write_text(sites.read_text().replace("blocks.", "[bold]\\n::error::\\u001b[31m\\u202eblocks."))
    artifacts.seal(folder, changed)
    return folder


def test_what_an_artifact_says_about_itself(hostile: Path, tmp_path: Path) -> None:
    stored = json.loads((hostile / "audit.json").read_text())
    assert stored["manifest"] != artifacts.load(hostile).digest
    printed = check(run("inspect", hostile), 0)
    assert "[bold]" in printed, "markup is text"
    check(run("gate", hostile, "--min-fused", "100", "--max-drop", "1"), 0, 1, 3)
    markdown, junit = tmp_path / "gate.md", tmp_path / "gate.xml"
    check(run("gate", hostile, "--min-fused", "100", "--markdown", markdown, "--junit", junit), 0, 1, 3)
    assert find_harm(markdown.read_text()) == []
    check(run("report", hostile, "--images", "0"), 0)


def test_what_evidence_says(hostile: Path) -> None:
    loaded = artifacts.load(hostile)
    from tests.evidence import audit, bench, evaluation
    from tests.proofs.hostile import poison

    for name in ("\x1b[31m\n::error::x", "[bold]\u202e##[error]x"):
        for evidence in (audit(10), bench(1.4, 1.5, 1.6, "busy"), evaluation()):
            loaded.write_evidence(poison(evidence, name))
        check(run("inspect", hostile), 0)
        check(run("gate", hostile, "--min-fused", "100", "--min-speedup", "1", "--max-drop", "1"), 0, 1, 3)
        check(run("report", hostile, "--images", "0"), 0)


def test_labels_of_predictions(hostile: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    printed = check(run("predict", hostile, tmp_path / "a.png"), 0)
    assert sum("%" in line or "0." in line for line in printed.splitlines()) == 5, "each answer is one line"
    check(run("predict", hostile, tmp_path / "a.png", "--json"), 0)


def test_names_of_images(demo: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = demo(target="onnxruntime").path
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    paths = []
    for number, name in enumerate(file_names()):
        path = tmp_path / f"{number}{name}.png"
        shutil.copy(tmp_path / "a.png", path)
        paths.append(path)
    assert len(paths) > 40
    printed = check(run("predict", artifact, *paths), 0)
    (first,) = {line.strip() for line in printed.splitlines() if line.strip().endswith("%  0")}
    assert sum(line.strip() == first for line in printed.splitlines()) == len(paths), "one best class for each image"
    out = check(run("predict", artifact, *paths, "--json"), 0)
    shown = [one["image"] for one in json.loads(out)["predictions"]]
    assert shown == [str(path).encode("utf-8", "backslashreplace").decode() for path in paths]


@pytest.mark.parametrize("name", list(words()), ids=ascii)
def test_names_that_do_not_exist(name: str, tmp_path: Path) -> None:
    for line in (
        ("inspect", name),
        ("gate", name),
        ("export", name, "--target", "onnxruntime", "-o", tmp_path / "out"),
        ("export", "demo:digits", "--target", "onnxruntime", "--weights", name, "-o", tmp_path / "out"),
        ("export", "demo:digits", "--target", name),
        ("export", f"timm:{name}", "--target", "onnxruntime", "-o", tmp_path / "out"),
        ("export", f"python:{name}:make", "--target", "onnxruntime", "-o", tmp_path / "out"),
        ("run", name),
        ("recipes", name),
        (name,),
        ("gate", f"--{name}", "x"),
        ("gate", "x", "--max-drop", name),
    ):
        printed = check(run(*line), 1, 2)
        assert printed.strip()


@pytest.mark.parametrize("name", ["\x1b[31m", "a\n::error::x", "\u202e", "[bold]x", "##[error]x"], ids=ascii)
def test_recipes(name: str, tmp_path: Path) -> None:
    import yaml

    for recipe in (
        {"model": name, "target": {"kind": "onnxruntime"}},
        {"model": "demo:digits", "target": {"kind": name}},
        {"model": "demo:digits", "target": {"kind": "onnxruntime"}, name: 1},
        {"model": "demo:digits", "target": {"kind": "onnxruntime", name: 1}},
        {"model": "demo:digits", "target": {"kind": "onnxruntime"}, "data": {"evaluation": name}},
        {"model": "demo:digits", "target": {"kind": "onnxruntime"}, "gate": {"max_drop_pp": name}},
    ):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        check(run("run", path, "-o", tmp_path / "out"), 1, 2)
    path.write_text(f"model: {name}\n  - {name}: [")
    check(run("run", path, "-o", tmp_path / "out"), 1)


def test_names_in_an_onnx_file(tmp_path: Path) -> None:
    model = onnx.load(small_cnn(tmp_path / "plain.onnx"))
    name = "[bold]\x1b[31m\u202e\n::error::##[error]x"
    for node in model.graph.node:
        node.name = f"{node.op_type}{name}"
        node.input[:] = [f"{value}{name}" for value in node.input]
        node.output[:] = [f"{value}{name}" for value in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name += name
    onnx.save(model, tmp_path / "hostile.onnx")
    printed = check(
        run("export", tmp_path / "hostile.onnx", "--target", "onnxruntime", "-o", tmp_path / "a", "--no-cache"), 0, 1
    )
    assert printed
    if (tmp_path / "a").exists():
        check(run("inspect", tmp_path / "a"), 0)
    model.graph.node[0].op_type = f"Conv{name}"  # an error that quotes it
    onnx.save(model, tmp_path / "unknown.onnx")
    check(run("export", tmp_path / "unknown.onnx", "--target", "onnxruntime", "-o", tmp_path / "b"), 1)


def test_classes_of_a_data_folder(demo: Callable[..., Artifact], tmp_path: Path) -> None:
    for name in list(file_names())[:12]:
        folder = tmp_path / "data" / f"class{name}"
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
        (folder / f"bad{name}.png").write_bytes(b"no image")
    check(run("eval", demo(target="onnxruntime").path, "--data", tmp_path / "data"), 0, 1)


def test_another_process_prints_the_same(tmp_path: Path) -> None:
    """The installed command, whose stdout and stderr are those of the process."""
    name = "\x1b[31m\u202e\n::error::x"
    for line in (["gate", f"--{name}"], ["gate", "--traceback", name]):
        done = subprocess.run(
            [sys.executable, "-m", "vitdeploy", *line], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode in (1, 2)
        assert find_harm(done.stdout + done.stderr) == []
        assert escape("\x1b[31m\u202e") in done.stderr


def test_warnings_of_libraries_are_escaped() -> None:
    code = (
        "import sys, warnings; sys.argv = ['vitdeploy', 'recipes', '--json'];"
        "from vitdeploy.recipe import shipped;"
        "old = shipped.shipped_recipes;"
        "shipped.shipped_recipes = lambda: (warnings.warn('\\x1b[31m\\n::error::x'), old())[1];"
        "from vitdeploy.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "UserWarning" in done.stderr
    assert find_harm(done.stderr) == []


def test_an_answer_of_a_data_class_is_escaped_too() -> None:
    from vitdeploy.escaping import escape_strings

    @dataclasses.dataclass(frozen=True)
    class Answer:
        name: str
        places: tuple[Path, ...]

    assert escape_strings(Answer("\x1b", (Path("a\nb"),))) == Answer("\\x1b", (Path("a\\nb"),))
