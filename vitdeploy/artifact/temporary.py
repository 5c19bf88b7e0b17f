"""New files and folders beside the place that they will take: named at random, locked while their process lives.

tempfile gives its files to one user only (mode 0600 and 0700). What is made here follows the umask, because it stays.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from vitdeploy.artifact import locks

PARTIAL, OLD = "partial", "old"
"""The kinds of hidden names: of what is being written or removed, and of a folder that a new one is replacing."""
_SCRATCH = "vitdeploy-scratch-"
_SCRATCH_NAME = re.compile(rf"{_SCRATCH}[a-z]+-[0-9a-z_]+")
_process_folders = ExitStack()
_LOCKED_AFTER_S = 60.0  # between creating a file and locking it a process may be stopped, but not for so long


def hidden_name(name: str, kind: str) -> str:
    """Return a new hidden name for something that will be, or was, called `name`."""
    return f".{name}.{kind}-{secrets.token_hex(8)}"


def find_hidden(parent: Path, name: str | None, kind: str) -> list[Path]:
    """List what `hidden_name` has named in a folder; `name` None: for any name."""
    try:
        paths = sorted(parent.iterdir())
    except OSError:
        return []
    pattern = re.compile(rf"\.(.+)\.{kind}-[0-9a-z_]+", re.DOTALL)
    matches = {path: pattern.fullmatch(path.name) for path in paths}
    return [path for path, match in matches.items() if match and name in (None, match[1])]


def create_folder(out: Path) -> tuple[Path, int | None]:
    """Create a folder beside `out`; return it with the open handle that locks it."""
    folder = out.with_name(hidden_name(out.name, PARTIAL))
    folder.mkdir()
    return folder, locks.open_locked(folder)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_abandoned(parent: Path, name: str | None = None) -> list[Path]:
    """Remove folders that dead processes were writing beside `name`. Return those of processes that live.

    The caller holds the lock on `parent`, so that none is being created.
    """
    states = {path: locks.read_state(path) for path in find_hidden(parent, name, PARTIAL)}
    for path, state in states.items():
        if state == "ours" or path.is_symlink():
            remove(path)
    return [path for path, state in states.items() if state == "busy"]


def sync_folder(folder: Path) -> None:
    """Write a folder's list of names to the disk."""
    if os.name == "nt":
        return  # a folder cannot be opened there
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks cannot
            raise
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`. It becomes `path` when the block ends well, and is removed otherwise.

    The block may open it as often as it likes, but not rename it. File and folder are on the disk at the end.
    """
    _remove_abandoned_files(path)
    temporary = path.with_name(hidden_name(path.name, PARTIAL))
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        try:
            locks.try_lock(handle)
            yield temporary
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):  # the folder may be gone or read-only by now; the error on its way says more
            temporary.unlink()


def _remove_abandoned_files(path: Path) -> None:
    """Remove temporary files of dead processes for the same place."""
    for old in find_hidden(path.parent, path.name, PARTIAL):
        with suppress(OSError):
            is_old = time.time() - old.lstat().st_mtime > _LOCKED_AFTER_S
            if is_old and not old.is_dir() and locks.read_state(old) == "ours":
                old.unlink()


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Yield a private folder among the system's temporary files, and remove it. Those of dead processes go too."""
    prefix = f"{_SCRATCH}{purpose}-"
    _remove_abandoned_scratch(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        handle = locks.open_locked(Path(folder))
        try:
            yield Path(folder)
        finally:
            if handle is not None:
                os.close(handle)


@cache
def process_folder(purpose: str) -> Path:
    """Return a private folder for a purpose that lives as long as this process, or until they are removed."""
    atexit.register(remove_process_folders)
    return _process_folders.enter_context(scratch_folder(purpose))


def remove_process_folders() -> None:
    """Remove what `process_folder` has returned. A process that ends without Python's exit handlers has to."""
    _process_folders.close()
    process_folder.cache_clear()


def _remove_abandoned_scratch(parent: Path) -> None:
    """Remove this user's scratch folders that no process has locked. Others may write to the same parent folder."""
    for folder in parent.glob(f"{_SCRATCH}*"):
        with suppress(OSError):
            facts = folder.lstat()
            is_ours = stat.S_ISDIR(facts.st_mode) and getattr(os, "getuid", lambda: None)() in (facts.st_uid, None)
            is_old = time.time() - facts.st_mtime > _LOCKED_AFTER_S
            if is_ours and is_old and _SCRATCH_NAME.fullmatch(folder.name) and locks.read_state(folder) == "ours":
                shutil.rmtree(folder, ignore_errors=True)
