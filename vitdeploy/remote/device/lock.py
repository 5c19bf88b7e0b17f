"""One job at a time on a device: a lock that all users share, and that dies with its holder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from vitdeploy.remote.messages import Holder, Job

_FOLDERS = ("/run/lock", "/tmp")  # noqa: S108  both belong to everybody, as the device does
_NAME = "vitdeploy.lock"
_MAX_BYTES = 1 << 16


@contextmanager
def held(job: Job, waiting: Callable[[Holder | None], None]) -> Iterator[int]:
    """Hold the device; the descriptor that holds it is yielded, so that a child may hold it too.

    `waiting` is called with the holder, if there is one, before this waits for its end.
    """
    descriptor = _open()
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting(_read(descriptor))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        _write(descriptor, Holder(client=job.client, words=job.words, since=time.time()))
        yield descriptor
        _write(descriptor, None)
    finally:
        os.close(descriptor)


@contextmanager
def held_if_free() -> Iterator[bool]:
    """Hold the device if nobody else does."""
    descriptor = _open()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def holder() -> Holder | None:
    """Who holds the device; None when it is free."""
    with held_if_free() as free:
        if free:
            return None
    descriptor = _open()
    try:
        return _read(descriptor) or Holder(client="somebody", words=(), since=time.time())
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
        os.fchmod(descriptor, 0o666)  # whatever the umask: the next one is another user
        return descriptor
    except PermissionError:
        return os.open(path, os.O_RDONLY | flags)  # can be locked all the same


def _read(descriptor: int) -> Holder | None:
    try:
        return Holder.model_validate_json(os.pread(descriptor, _MAX_BYTES, 0))
    except (ValidationError, OSError):
        return None


def _write(descriptor: int, found: Holder | None) -> None:
    try:
        os.ftruncate(descriptor, 0)
        if found is not None:
            os.pwrite(descriptor, found.model_dump_json().encode()[:_MAX_BYTES], 0)
    except OSError:
        return  # of another user: who holds it stays untold
