"""Open files that others made: no pipe that never ends, no device, and no more bytes than expected."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


class UnusableFile(OSError):
    """A file that is not plain, or too large. `reason` says which, and completes "FILE cannot be read: …"."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))
        self.reason = reason


def open_plain(path: Path, limit: int | None = None, *, follow: bool = True) -> BinaryIO:
    """Open a plain file of at most `limit` bytes to read it. A link to one is followed if `follow` is set.

    Raises:
        UnusableFile: it is a pipe, a device or a socket; it is too large; or no file can have this name.
        OSError: it does not exist, is a folder or a link that is not followed, or may not be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
    except ValueError:  # a name with a zero byte
        raise UnusableFile(path, "no file has such a name") from None
    try:
        _check(path, os.fstat(handle), limit)
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _check(path: Path, facts: os.stat_result, limit: int | None) -> None:
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(facts.st_mode):
        raise UnusableFile(path, "it is not a plain file")
    if limit is not None and facts.st_size > limit:
        raise UnusableFile(path, f"it has {facts.st_size:,} bytes, and more than {limit:,} are not read")


def read_plain(path: Path, limit: int) -> bytes:
    """Read a plain file of at most `limit` bytes.

    Raises:
        UnusableFile: see `open_plain`; or it grows while it is read.
        OSError: it does not exist, or may not be read.
    """
    with open_plain(path, limit) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnusableFile(path, f"it has more than {limit:,} bytes")
    return content


def expand_home(name: str) -> Path:
    """Return the path with `~` and `~USER` as their folders; as it is where there is no such user."""
    path = Path(name)
    try:
        return path.expanduser()
    except RuntimeError:
        return path
