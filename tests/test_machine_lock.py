"""The lock of a machine: alone or shared, for as long as a process lives."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from vitdeploy import machine_lock

PATIENCE_S = 30
NOBODY = 65534


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


def test_root_and_users_choose_the_folder_that_is_open_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, opened = tmp_path / "closed", tmp_path / "open"
    for folder, mode in ((closed, 0o755), (opened, 0o1777)):
        folder.mkdir()
        folder.chmod(mode)
    monkeypatch.setattr(machine_lock, "_FOLDERS", (str(closed), str(opened)))
    machine_lock.identify()
    assert not list(closed.iterdir())
    assert len(list(opened.iterdir())) == 1


def identify_as(user: int, pipe: Connection, begin: Event) -> None:
    os.umask(0o077)
    if user:
        os.setuid(user)
    begin.wait(PATIENCE_S)
    pipe.send(machine_lock.identify())


@pytest.mark.parametrize("users", [(0, 0, 0, 0), (0, NOBODY, 0, NOBODY)])
def test_processes_that_create_it_at_once_get_one_file(
    users: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any(users) and os.geteuid() != 0:
        pytest.skip("only root can become other users")
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to others
        Path(folder).chmod(0o1777)
        monkeypatch.setattr(machine_lock, "_FOLDERS", (folder,))
        context = multiprocessing.get_context("fork")
        begin, pipes = context.Event(), [context.Pipe() for _ in users]
        for user, (_, other) in zip(users, pipes, strict=True):
            context.Process(target=identify_as, args=(user, other, begin), daemon=True).start()
        begin.set()
        answers = [pipe.recv() for pipe, _ in pipes if pipe.poll(PATIENCE_S)]
    assert len(answers) == len(users)
    assert len(set(answers)) == 1


def test_a_link_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vitdeploy.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"vitdeploy\.lock"):
        machine_lock.identify()
