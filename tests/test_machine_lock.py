"""The lock of a machine: alone or shared, for as long as a process lives."""

from __future__ import annotations

import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from vitdeploy import machine_lock

PATIENCE_S = 30


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one may be held by others."""
    monkeypatch.setattr(machine_lock, "_FOLDERS", (str(tmp_path),))


def hold(kind: str, pipe: Connection) -> None:
    with getattr(machine_lock, kind)():
        pipe.send("held")
        pipe.recv()


class Holder:
    """A process that holds the lock until it is released or killed."""

    def __init__(self, kind: str) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=hold, args=(kind, other), daemon=True)
        self.process.start()

    def holds(self, wait: float = PATIENCE_S) -> bool:
        return self.pipe.poll(wait) and self.pipe.recv() == "held"

    def release(self) -> None:
        self.pipe.send("end")
        self.process.join(PATIENCE_S)


def test_work_shares_and_a_measurement_is_alone() -> None:
    first, second = Holder("shared"), Holder("shared")
    assert first.holds()
    assert second.holds()
    measurement = Holder("alone")
    assert not measurement.holds(0.3)
    first.release()
    assert not measurement.holds(0.3)
    second.process.kill()  # the lock ends with its process
    assert measurement.holds()
    late = Holder("shared")
    assert not late.holds(0.3)
    measurement.release()
    assert late.holds()
    late.release()


def test_work_that_begins_again_and_again_does_not_keep_a_measurement_waiting() -> None:
    first = Holder("shared")
    assert first.holds()
    measurement = Holder("alone")
    assert not measurement.holds(0.3)
    late = Holder("shared")
    assert not late.holds(0.3), "it came after the measurement"
    first.release()
    assert measurement.holds()
    assert not late.holds(0.3)
    measurement.release()
    assert late.holds()
    late.release()


def test_who_waits_is_told_once() -> None:
    holder, waits = Holder("alone"), list[float]()
    assert holder.holds()
    threading.Timer(0.3, holder.release).start()
    with machine_lock.alone(lambda: waits.append(time.monotonic())):
        assert len(waits) == 1
    with machine_lock.alone(lambda: waits.append(0.0)):
        assert len(waits) == 1


def test_the_lock_is_the_same_file_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine_lock.identify()
    assert machine_lock.identify() == first
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(machine_lock, "_FOLDERS", (str(tmp_path / "other"),))
    assert machine_lock.identify() != first
    assert len(machine_lock.boot_id()) in (0, 36)
