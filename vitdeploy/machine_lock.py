"""The lock of this machine: a measurement holds it alone, other work may share it. It ends with its process.

Whoever waits to hold it alone holds the turnstile, which those who share pass first: work that begins again and again
cannot keep a measurement waiting for ever.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_FOLDERS = ("/run/lock", "/tmp")  # noqa: S108  all users share the machine, so the folder must be open to all
_NAME, _TURNSTILE = "vitdeploy.lock", "vitdeploy.turnstile"
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
    folder = next((f for f in _FOLDERS if os.access(f, os.W_OK)), _FOLDERS[-1])
    path = Path(folder) / name
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | flags)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
        os.fchmod(descriptor, 0o666)  # despite the umask: the next job may be another user's
        return descriptor
    except PermissionError:
        return os.open(path, os.O_RDONLY | flags)  # flock works on a read-only descriptor too
