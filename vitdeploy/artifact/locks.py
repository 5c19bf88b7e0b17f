"""Locks that end with their process: `flock` on a folder or file that exists anyway. They leave nothing behind.

Where a file system has no such locks (some network disks), or the system has none (Windows), everything goes on
without them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from vitdeploy.errors import ArtifactError

if sys.platform != "win32":
    import fcntl

_PATIENCE_S = 60.0  # such a lock is held for renames, and for removing what a killed process has left
_PAUSE_S = 0.02

State = Literal["ours", "busy", "unknown"]


def try_lock(handle: int) -> State:
    """Lock an open file or folder until the handle is closed; "unknown" where there are no locks."""
    if sys.platform == "win32":
        return "unknown"
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "busy"
    except OSError:
        return "unknown"
    return "ours"


def open_locked(path: Path) -> int | None:
    """Open a new file or folder and lock it, which shows that its process lives. None if it cannot be opened."""
    handle = _open(path)
    if handle is not None:
        try_lock(handle)
    return handle


def read_state(path: Path) -> State:
    """Return "busy" if a process holds the lock, "ours" if certainly none does, and "unknown" otherwise."""
    handle = _open(path)
    if handle is None:
        return "unknown"
    try:
        return try_lock(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a file or folder for a moment; wait while another process does.

    Raises:
        ArtifactError: another process holds it for a minute.
    """
    handle = _open(path)
    try:
        until = time.monotonic() + _PATIENCE_S
        while handle is not None and try_lock(handle) == "busy":
            if time.monotonic() > until:
                raise ArtifactError(f"another process has locked {path}", fix="Wait until it ends, and try again.")
            time.sleep(_PAUSE_S)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _open(path: Path) -> int | None:
    """Open a file or folder, no link and no pipe; None if that is not possible, as with folders on Windows."""
    handle = None
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    return handle
