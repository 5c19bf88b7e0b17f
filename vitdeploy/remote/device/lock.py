"""One job at a time on a device: a lock that all users share, and that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from vitdeploy.remote.messages import Job, LockHolder

_FOLDERS = ("/run/lock", "/tmp")  # noqa: S108  all users share the device, so the folder must be open to all
_NAME = "vitdeploy.lock"
_MAX_BYTES = 1 << 16


@contextmanager
def hold(job: Job, on_wait: Callable[[LockHolder | None], None]) -> Iterator[int]:
    """Wait for the device's lock and hold it for the block.

    Args:
        job: written into the lock file, so that others see who holds it.
        on_wait: called once before waiting, with the holder if it is known.

    Yields:
        The descriptor of the lock. A child that inherits it holds the lock too.
    """
    descriptor = _open()
    try:
        if not try_lock(descriptor):
            on_wait(_read(descriptor))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        _write(descriptor, LockHolder(client=job.client, words=job.words, since=time.time()))
        yield descriptor
        _write(descriptor, None)
    finally:
        os.close(descriptor)


@contextmanager
def try_hold() -> Iterator[bool]:
    """Hold the device's lock for the block if nobody else does. Yield True if this process holds it."""
    descriptor = _open()
    try:
        yield try_lock(descriptor)
    finally:
        os.close(descriptor)


def try_lock(file: int | BinaryIO) -> bool:
    """Lock an open file if no other process has. Return True if it worked; closing the file ends the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_holder() -> LockHolder | None:
    """Return the job that holds the device's lock; None when the device is free."""
    with try_hold() as free:
        if free:
            return None
    descriptor = _open()
    try:
        return _read(descriptor) or LockHolder(client="an unknown user", words=(), since=time.time())
    finally:
        os.close(descriptor)


def _open() -> int:
    folder = next((f for f in _FOLDERS if os.access(f, os.W_OK)), _FOLDERS[-1])
    path = Path(folder) / _NAME
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | flags)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
        os.fchmod(descriptor, 0o666)  # despite the umask: the next job may be another user's
        return descriptor
    except PermissionError:
        return os.open(path, os.O_RDONLY | flags)  # flock works on a read-only descriptor too


def _read(descriptor: int) -> LockHolder | None:
    try:
        return LockHolder.model_validate_json(os.pread(descriptor, _MAX_BYTES, 0))
    except (ValidationError, OSError):
        return None


def _write(descriptor: int, lock_holder: LockHolder | None) -> None:
    try:
        os.ftruncate(descriptor, 0)
        if lock_holder is not None:
            os.pwrite(descriptor, lock_holder.model_dump_json().encode()[:_MAX_BYTES], 0)
    except OSError:
        return  # the file is another user's: the lock works, only the holder's name is missing
