"""Wrong numbers over `--host`: noticed, located and rebuilt on the board, and whole when they come back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import run
from tests.fakes.board import Board
from tests.remote.conftest import process_of, when
from tests.remote.cutter import Wire
from tests.remote.far import Far, url_of
from tests.remote.planted import CASES, CUT
from tests.remote.wrong_numbers import Bench, cut_link

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("near")]


@pytest.fixture
def bench(board: Board, wire: Wire, far: Far, small_bundle: Callable[..., Any]) -> Bench:
    """A board whose wire can be cut."""
    return Bench(board, wire, far.port, url_of(wire.port), lambda model: small_bundle(model, "fp16,int8"))


def test_a_fault_is_located_and_rebuilt_on_the_board(bench: Bench) -> None:
    case = CASES[0]
    assert bench.compile(case, "11.4").outcome == case.expect("11.4")
    assert [bool(nodes) for nodes in bench.board.struck()] == [True, True, True, False, True], (
        "the engine, one with block ends, one with the layers of a block, the safe form, and INT8"
    )


def test_a_cut_link_costs_no_build(bench: Bench, tmp_path: Path) -> None:
    whole = bench.compile(CUT, "10.3")
    assert whole.outcome == CUT.expect("10.3")
    cut = cut_link(bench, CUT, "10.3", tmp_path, builds=4)
    assert "cannot be reached" in cut.error
    assert "The job goes on there; the same `vitdeploy compile` fetches its result." in cut.error
    assert cut.unchanged, "nothing half-written"
    assert cut.resumed
    assert cut.again == whole


def test_a_board_that_dies_in_the_middle_builds_only_the_rest(
    bench: Bench, lab: Callable[..., Far], copy: Callable[[Path], Path]
) -> None:
    """What is located is not located again either: that takes two builds."""
    far, board = lab(), bench.board
    board.install("10.3", [CUT.fault])
    here = copy(bench.bundle(CUT.model).path)

    def die() -> None:
        for process in process_of(far):
            os.kill(process, signal.SIGKILL)

    dying = when(lambda: len(board.struck()) >= 4, die)
    ended = run("compile", here, "--host", "lab")
    dying.join()
    assert "was killed on lab" in ended.error
    before = board.begun()
    bench = replace(bench, host="lab")
    result = bench.read(bench.start(here), here)
    assert result.outcome == CUT.expect("10.3")
    assert len(before) < len({*board.begun()}), "it died before the last build"
    repeated = {build for build in board.begun() if board.begun().count(build) > 1}
    assert repeated <= {before[-1]}, "at most the build that was killed"
