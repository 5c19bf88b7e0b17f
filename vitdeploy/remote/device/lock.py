"""One job at a time on a device: a lock that all users share, and that ends with the process that holds it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from vitdeploy.machine_lock import lock_alone, open_lock, try_lock
from vitdeploy.remote.messages import Job, LockHolder

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
    descriptor = open_lock()
    try:
        if not try_lock(descriptor):
            on_wait(_read(descriptor))
            lock_alone(descriptor)
        _write(descriptor, LockHolder(client=job.client, words=job.words, since=time.time()))
        try:
            yield descriptor
        finally:
            _write(descriptor, None)
    finally:
        os.close(descriptor)


@contextmanager
def try_hold() -> Iterator[bool]:
    """Hold the device's lock for the block if nobody else does. Yield True if this process holds it."""
    descriptor = open_lock()
    try:
        yield try_lock(descriptor)
    finally:
        os.close(descriptor)


def read_holder() -> LockHolder | None:
    """Return the job that holds the device's lock; None when the device is free."""
    with try_hold() as free:
        if free:
            return None
    descriptor = open_lock()
    try:
        return _read(descriptor) or LockHolder(client="an unknown user", words=(), since=time.time())
    finally:
        os.close(descriptor)


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
