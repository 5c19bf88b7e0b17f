"""Run the work on each model in a child process, so that a crash, or a row without end, is one row with its reason."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from benchmarks.zoo.rows import Case, Row

_SPAWN = multiprocessing.get_context("spawn")


def make_rows(cases: list[Case], folder: Path, answers: Connection) -> None:
    """Make the rows of one model, with libraries that only the child loads."""
    from benchmarks.zoo import making

    making.make_rows(cases, folder, answers)


def make_all(
    cases: Iterable[Case], limit: float, work: Callable[[list[Case], Path, Connection], None] = make_rows
) -> Iterator[Row]:
    """Yield the rows of these cases, in their order, as they are finished.

    Args:
        cases: the cases, those of one model together.
        limit: the longest time of a row, in seconds.
        work: makes the rows of one model in a child process, and sends each as soon as it is finished.
    """
    for _, group in groupby(cases, key=lambda case: case.model):
        folder = Path(tempfile.mkdtemp(prefix="zoo-"))
        try:
            left = list(group)
            while left:
                for row in _run_child(left, folder, limit, work):
                    left.pop(0)
                    yield row
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _run_child(
    cases: list[Case], folder: Path, limit: float, work: Callable[[list[Case], Path, Connection], None]
) -> Iterator[Row]:
    """Yield rows until the child has made all, or one of them has ended it: then that one is the last."""
    answers, child_end = _SPAWN.Pipe(duplex=False)
    child = _SPAWN.Process(target=work, args=(list(cases), folder, child_end), daemon=True)
    child.start()
    child_end.close()  # so that the child's death ends the pipe
    try:
        for case in list(cases):
            row, goes_on = _receive(answers, child, case, limit)
            yield row
            if not goes_on:
                return
    finally:
        child.kill()
        child.join()
        answers.close()


def _receive(answers: Connection, child: SpawnProcess, case: Case, limit: float) -> tuple[Row, bool]:
    """Return the row of a case, and False if the child cannot go on."""
    if not answers.poll(limit):
        return Row(*case, seconds=limit, error=f"took more than {limit:.0f} s"), False
    with suppress(EOFError):
        row: Row = answers.recv()
        return row, True
    child.join()
    return Row(*case, seconds=0, error=_describe_end(child.exitcode or 0)), False


def _describe_end(code: int) -> str:
    """Return how a process ended: exit codes below zero are signals."""
    if code == -signal.SIGKILL:
        return "ended by SIGKILL, as when memory runs out"
    return f"crashed with {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
