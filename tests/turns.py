"""Tests in parallel that take turns: what is timed runs alone, and what one machine has once stays on one worker.

A pytest plug-in for pytest-xdist (`-n`). Without it, or with one worker, tests run one after the other anyway.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.hookimpl(wrapper=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, object, object]:
    """Keep the tests of a file on one worker, which makes its fixtures once; and those of the far side together."""
    for item in items:
        file = item.path.relative_to(item.config.rootpath).as_posix()
        item.add_marker(pytest.mark.xdist_group("remote" if "remote" in Path(file).parts else file))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test marked `timing` run while no other test runs."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return (yield)
    with _turn(Path(tempfile.gettempdir()) / f"vitdeploy-{run}", alone="timing" in item.keywords):
        return (yield)


@contextmanager
def _turn(name: Path, *, alone: bool) -> Iterator[None]:
    """Hold a lock that tests share, or that one test has alone.

    Whoever waits for it holds the turnstile, so that others cannot pass by for ever.
    """
    with name.with_suffix(".turnstile").open("w") as turnstile, name.with_suffix(".lock").open("w") as lock:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        yield
