"""The lock of this machine: a measurement holds it alone, other work may share it. It ends with its process.

Whoever waits to hold it alone holds the turnstile, which those who share pass first: work that begins again and again
cannot keep a measurement waiting for ever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_FOLDERS: tuple[str, ...] = ("/run/lock", "/tmp")  # noqa: S108  all users share the machine, so the folder must be open to all
_NAME, _TURNSTILE = "vitdeploy.lock", "vitdeploy.turnstile"
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW
_ATTEMPTS, _PAUSE_S = 100, 0.01
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_lock() -> int:
    """Open the lock's file, which may be another user's. The lock is held until the descriptor is closed."""
    return _open(_NAME)


def try_lock(file: int | BinaryIO) -> bool:
    """Lock an open file if no other process has. Return True if it worked; closing the file ends the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_alone(descriptor: int) -> None:
    """Wait until no other process holds or shares the lock, and hold it."""
    _pass(descriptor, fcntl.LOCK_EX)


@contextmanager
def alone(on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock alone for the block, as a measurement does. `on_wait` is called once before waiting."""
    descriptor = open_lock()
    try:
        if not try_lock(descriptor):
            on_wait()
            lock_alone(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def shared() -> Iterator[None]:
    """Share the lock for the block, as work does that would disturb a measurement."""
    descriptor = open_lock()
    try:
        _pass(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def identify() -> str:
    """Return what is the same wherever the lock's file is: containers on one machine may each have another."""
    descriptor = open_lock()
    try:
        facts = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return f"{facts.st_dev}:{facts.st_ino}"


def boot_id() -> str:
    """Return what names this machine until it starts again, the same in all its containers; empty if unknown."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pass(descriptor: int, operation: int) -> None:
    turnstile = _open(_TURNSTILE)
    try:
        fcntl.flock(turnstile, operation)
        fcntl.flock(descriptor, operation)
    finally:
        os.close(turnstile)


def _open(name: str) -> int:
    path = shared_folder() / name
    for left in reversed(range(_ATTEMPTS)):
        try:
            return _open_existing(path)
        except FileNotFoundError:
            with suppress(FileExistsError):  # another process was quicker
                return _create(path)
        except PermissionError:
            if not left:
                raise
            time.sleep(_PAUSE_S)  # another user has just created it, and opens it to all at once
    raise FileNotFoundError(errno.ENOENT, "it is created and removed again and again", str(path))


def _open_existing(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | _FLAGS)
    except PermissionError:
        return os.open(path, os.O_RDONLY | _FLAGS)  # flock works on a read-only descriptor too


def _create(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
    os.fchmod(descriptor, 0o666)  # despite the umask: the next job may be another user's
    return descriptor


def shared_folder() -> Path:
    """Return the first folder that all users may write to: root and others must find the same files."""
    for folder in map(Path, _FOLDERS):
        with suppress(OSError):
            if folder.stat().st_mode & stat.S_IWOTH and os.access(folder, os.W_OK):
                return folder
    return Path(_FOLDERS[-1])
