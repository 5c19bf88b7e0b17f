"""A log as a file of JSON Lines: one entry a line, which appears whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

from vitdeploy.artifact import locks
from vitdeploy.commands.log.entry import Entry
from vitdeploy.errors import UsageError
from vitdeploy.plain_files import open_plain

_PATIENCE_S = 10.0  # another process holds the lock for one write
_PAUSE_S = 0.01
_FIX = "Free some space, or choose another file."


class JsonLines:
    """A file that entries are appended to. Several processes may write to it at the same time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shown = f"jsonl:{path}"

    def check(self) -> None:
        """Check, before any work, that the file can be written.

        Raises:
            UsageError: it cannot.
        """
        path, parent = self._path, self._path.absolute().parent
        if path.is_dir():
            raise UsageError(f"{path} is a folder", fix=f"Give a file: --log jsonl:{path / 'log.jsonl'}")
        if not parent.is_dir():
            raise UsageError(f"there is no folder {parent}", fix="Create it, or give --log another file.")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a plain file", fix="Give --log another file.")
        if not os.access(path if path.exists() else parent, os.W_OK):
            raise UsageError(f"{path} may not be written", fix="Give --log another file.")

    def answers(self) -> bool:
        """Return False: what refuses one line, such as a full disk, refuses the next one too."""
        return False

    def list_digests(self, sweep: str) -> dict[str, str]:
        """Return the trials of a sweep that the file has: id -> digest. Lines that are no entries are skipped."""
        digests: dict[str, str] = {}
        try:
            with open_plain(self._path) as file:
                for line in file:
                    if sweep.encode() not in line:
                        continue
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(entry, dict) and entry.get("parent") == sweep:
                        digests[str(entry.get("id"))] = str(entry.get("digest"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UsageError(f"{self._path} cannot be read: {error.strerror}", fix="Choose another file.") from None
        return digests

    def write(self, entry: Entry, files: tuple[tuple[Path, str], ...]) -> str:  # noqa: ARG002  it names them
        """Append an entry as one line, and return a few words about it. One that is still running is left out.

        Raises:
            UsageError: the file cannot be written, is locked, or the disk is full. It is as before then.
        """
        if entry.status == "running":
            return ""
        try:
            self._append(entry.model_dump_json().encode() + b"\n")
        except OSError as error:
            raise UsageError(f"{self._path} cannot be written: {error.strerror}", fix=_FIX) from None
        return f"line {entry.id}"

    def _append(self, line: bytes) -> None:
        """Write a line with one call. If only a part of it fits on the disk, it is taken away again.

        That needs the lock: without one (Windows, some network disks) the part stays, because another process may have
        appended its line. The next line begins after it.

        Raises:
            UsageError: another process holds the lock for too long.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # not every system has each
            flags |= getattr(os, name, 0)
        handle = os.open(self._path, flags, 0o666)
        try:
            lock = self._lock(handle)
            size = os.fstat(handle).st_size
            if size and os.lseek(handle, size - 1, os.SEEK_SET) >= 0 and os.read(handle, 1) != b"\n":
                line = b"\n" + line  # another program stopped within its line
            written = 0
            try:
                written = os.write(handle, line)
            finally:
                if written < len(line) and lock == "ours":
                    os.ftruncate(handle, size)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> locks.State:
        until = time.monotonic() + _PATIENCE_S
        while (state := locks.try_lock(handle)) == "busy":
            if time.monotonic() >= until:
                raise UsageError(
                    f"{self._path} cannot be written: another process has locked it for {_PATIENCE_S:g} s",
                    fix="Stop that process, or choose another file.",
                )
            time.sleep(_PAUSE_S)
        return state
