"""A precision, a target, a task and a source are one file each: dropped into a copy of the package, each works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vitdeploy

TOYS = Path(__file__).parent / "toys"
PACKAGE = Path(vitdeploy.__file__).parent
RUN = """
import json, sys
import vitdeploy
from typer.testing import CliRunner
from vitdeploy.cli import app
assert vitdeploy.__file__.startswith(sys.argv[1]), vitdeploy.__file__
ends = [CliRunner(env={"COLUMNS": "200"}).invoke(app, words) for words in json.loads(sys.argv[2])]
print(json.dumps([[end.exit_code, end.stdout, end.stderr] for end in ends]))
"""

Run = Callable[..., list[tuple[int, str, str]]]


@pytest.fixture
def with_toy(tmp_path: Path) -> Callable[[str, str], Run]:
    """Adds one file to one folder of a copied package, and runs commands with that package."""

    def add(toy: str, folder: str) -> Run:
        source = tmp_path / "source"
        shutil.copytree(PACKAGE, source / "vitdeploy", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(TOYS / toy, source / "vitdeploy" / folder / toy)

        def run(*lines: str) -> list[tuple[int, str, str]]:
            environment = os.environ | {"PYTHONPATH": str(source)}
            command = [sys.executable, "-W", "ignore", "-c", RUN, str(source), json.dumps([s.split() for s in lines])]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=400
            )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout.splitlines()[-1])

        return run

    return add


def answers(ends: list[tuple[int, str, str]]) -> list[Any]:
    """What commands with --json printed; all have to end well."""
    assert [code for code, _, _ in ends] == [0] * len(ends), [error for _, _, error in ends]
    return [json.loads(out) for _, out, _ in ends]


def test_a_precision(with_toy: Callable[[str, str], Run]) -> None:
    usage, *rest = with_toy("rounded.py", "precision")(
        "export --help",
        "export demo:digits --target onnxruntime --precision rounded -o a --json --quiet",
        "inspect a --json",
        "eval a --limit 100 --json --quiet",
        "gate a --min-fused 100 --max-size 10 --json",
    )
    exported, audit, evaluation, gate = answers(rest)
    assert "rounded" in usage[1]
    assert exported["precision"] == audit["precision"] == "rounded"
    assert audit["linears"]["fp32"] == 26, "all of them"
    assert 0.9 < evaluation["agreement"] <= 1
    assert gate["verdict"] == "pass"


def test_a_precision_is_taken_only_by_the_targets_that_it_names(with_toy: Callable[[str, str], Run]) -> None:
    ((code, _, error),) = with_toy("rounded.py", "precision")(
        "export demo:digits --target openvino --precision rounded"
    )
    assert code == 1
    assert "openvino cannot do rounded" in error


def test_a_target(with_toy: Callable[[str, str], Run]) -> None:
    usage, doctor, *rest = with_toy("interpreter.py", "targets")(
        "export --help",
        "doctor --json",
        "export demo:digits --target interpreter -o a --json --quiet",
        "inspect a --json",
        "eval a --limit 20 --json --quiet",
        "bench a --seconds 0.5 --json --quiet",
        "gate a --max-size 10 --json",
    )
    exported, audit, evaluation, bench, gate = answers(rest)
    assert "interpreter" in usage[1]
    assert json.loads(doctor[1])["targets"]["interpreter"]["available"]
    assert exported["stage"] == "artifact"
    assert (audit["target"], audit["attention"]["fused"]) == ("interpreter", 0)
    assert {site["reason"] for site in audit["attention"]["unfused"]} == {"it runs operator by operator"}
    assert evaluation["agreement"] == 1
    assert [run["name"] for run in bench["runs"]] == ["pytorch-fp32", "interpreter-fp32"]
    assert gate["verdict"] == "pass"


def test_a_task(with_toy: Callable[[str, str], Run], tmp_path: Path) -> None:
    Image.new("L", (32, 32)).save(tmp_path / "black.png")
    usage, *rest, text = with_toy("parity.py", "tasks")(
        "export --help",
        "export demo:digits --target onnxruntime --task parity -o a --json --quiet",
        "eval a --json --quiet",
        "gate a --max-drop 2 --json",
        "predict a black.png --json",
        "predict a black.png",
    )
    _, evaluation, gate, predicted = answers(rest)
    assert "parity" in usage[1]
    assert evaluation["task"] == "parity"
    assert evaluation["metrics"]["even_odd"]["reference"] > 95
    assert (gate["verdict"], gate["checks"][0]["name"]) == ("pass", "accuracy drop")
    assert isinstance(predicted["predictions"][0]["even"], bool)
    assert text[1].split()[-1] in ("even", "odd")


def test_a_source(with_toy: Callable[[str, str], Run]) -> None:
    usage, wrong, *rest = with_toy("small.py", "sources")(
        "export --help",
        "export small:two --target onnxruntime",
        "export small:2 --target onnxruntime --precision int8 -o a --json --quiet",
        "inspect a --json",
        "gate a --min-fused 100 --json",
    )
    exported, audit, gate = answers(rest)
    assert "small:DEPTH" in usage[1]
    assert wrong[0] == 1
    assert "'two' is not a number of blocks" in wrong[2]
    assert exported["weights"] == "random"
    assert (audit["attention"]["sites"], audit["attention"]["fused"]) == (2, 2)
    assert audit["linears"]["int8"] > 0, "calibrated on the data that the source names"
    assert gate["verdict"] == "pass"


@pytest.mark.parametrize("toy", ["rounded.py", "interpreter.py", "parity.py", "small.py"])
def test_no_other_file_knows_it(toy: str) -> None:
    """The whole diff of adding it is the file itself."""
    name = f"{toy.removesuffix('.py')}:" if toy == "small.py" else f'"{toy.removesuffix(".py")}"'
    assert [path.name for path in PACKAGE.rglob("*.py") if name in path.read_text(encoding="utf-8")] == []
