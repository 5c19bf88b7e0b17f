"""A board behind a real sshd, with a TensorRT that may compute wrong numbers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import run
from tests.cli.test_contract import answer
from tests.fakes.board import Board
from tests.fakes.miscompile import Fault
from tests.remote.far import HEAVY, Far
from vitdeploy import artifact as artifacts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("near")]


@pytest.mark.parametrize("release", ["10.3", "11.4"])
def test_a_board_compiles_and_runs_without_onnx(
    release: str, lab: Callable[..., Far], board: Board, small_bundle: Any, copy: Callable[[Path], Path]
) -> None:
    board.install(release)
    far = lab()
    hidden = f"import tensorrt, importlib.util as u; assert not any(map(u.find_spec, {HEAVY})), tensorrt.__version__"
    subprocess.run([far.venv / "bin" / "python", "-c", hidden], cwd="/", check=True)
    here = copy(small_bundle("deit").path)
    summary = answer(run("compile", here, "--host", "lab", "--json"))
    assert (summary["stage"], board.struck()) == ("artifact", [[]])
    assert 0.99999 < summary["parity"]["cosine"] < 1
    assert artifacts.load(here).manifest.doubts == ()


def test_a_board_that_miscompiles_is_noticed(
    lab: Callable[..., Far], board: Board, small_bundle: Any, copy: Callable[[Path], Path]
) -> None:
    board.install("10.3", [Fault("mixed_heads")])
    lab()
    here = copy(small_bundle("deit").path)
    answer(run("compile", here, "--host", "lab", "--json"))
    assert board.struck()[0]
    assert any("other numbers than the graph" in doubt for doubt in artifacts.load(here).manifest.doubts)


def test_a_board_locates_its_own_fault(
    lab: Callable[..., Far], board: Board, small_bundle: Any, copy: Callable[[Path], Path]
) -> None:
    """Over there is neither onnx nor torch: the bundle brings the values to compare with."""
    board.install("10.3", [Fault("wrong_rotation", within="blocks.2")])
    far = lab()
    there = copy(small_bundle("rope").path)
    assert far.vitdeploy("compile", str(there)).returncode == 0
    shown = far.vitdeploy("debug", str(there), "--json")
    assert shown.returncode == 0, shown.stderr
    located = json.loads(shown.stdout)
    assert (located["block"], located["layer"]) == ("blocks.2", "blocks.2.attn (sum 1)")
    assert all("blocks.2.attn/Neg" in nodes for nodes in board.struck())
