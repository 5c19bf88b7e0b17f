"""Tests on several workers (pytest-xdist): who runs what, in which order, and what runs alone.

A worker has one core: threads that wait in a spin for each other would take the core from those they wait for. Tests of
a file stay on one worker, which makes their fixtures once. All of tests/remote stay together, because they share one
far side, and all of tests/cluster, which share a Ray cluster. A test marked `timing` runs with all cores, while no
other test runs. With one worker nothing changes.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

_TOGETHER = ("tests/remote/", "tests/cluster/")
_FIRST = (*_TOGETHER, "tests/test_", "tests/cli/", "tests/commands/", "tests/pipeline/", "tests/targets/")
"""What takes longest. It begins first, so that no worker is alone with it at the end."""


_CORES: set[int] = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


class _ByFile(LoadScopeScheduling):
    """Give a worker all tests of a file. A test that ends its worker has failed, and is not tried again."""

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in _TOGETHER if nodeid.startswith(folder)), nodeid.partition("::")[0])

    def remove_node(self, node: WorkerController) -> str | None:
        """Give the tests of a worker that has ended to others. Return the one that ended it, if one did."""
        units = self.assigned_work[node].values()
        running = next(((unit, test) for unit in units for test, is_done in unit.items() if not is_done), None)
        if running is None:
            return super().remove_node(node)
        unit, test = running
        unit[test] = True
        super().remove_node(node)
        return test


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    """Distribute by file, in the order of collection."""
    config.option.loadscopereorder = False
    return _ByFile(config, log)


def pytest_sessionstart() -> None:
    """Give each worker its core."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        _use(_own_core())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, if there are several workers."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: next((i for i, start in enumerate(_FIRST) if item.nodeid.startswith(start)), 99))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test marked `timing` run with all cores, while no other test runs."""
    run, alone = os.environ.get("PYTEST_XDIST_TESTRUNUID"), "timing" in item.keywords
    if run is None:
        return (yield)
    with _turn(Path(tempfile.gettempdir()) / f"vitdeploy-{run}", alone=alone):
        _use(_CORES if alone else _own_core())
        return (yield)


def _own_core() -> set[int]:
    """Return the core of this worker, whose name is gw0, gw1, …"""
    cores = sorted(_CORES)
    return {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(cores)]} if cores else set()


def _use(cores: set[int]) -> None:
    """Run this thread, and threads and processes that it starts from now on, on these cores. Only Linux can."""
    if cores:
        os.sched_setaffinity(0, cores)


@contextmanager
def _turn(name: Path, *, alone: bool) -> Iterator[None]:
    """Hold a lock that tests share, or that one test has alone.

    Whoever waits for it holds the turnstile, so that others cannot pass by for ever. These locks are the process's own:
    a fork that a test leaves behind does not hold them, as it would with `flock`.
    """
    with name.with_suffix(".turnstile").open("a+") as turnstile, name.with_suffix(".lock").open("a+") as lock:
        fcntl.lockf(turnstile, fcntl.LOCK_EX)
        fcntl.lockf(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.lockf(turnstile, fcntl.LOCK_UN)
        yield
