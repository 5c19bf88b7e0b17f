"""Write folders and files that appear complete or not at all: beside their place first, synced, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitdeploy.artifact.layout import MANIFEST
from vitdeploy.errors import ArtifactError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_BELOW_BYTES = 1 << 20  # with less free space, any failed write is reported as a full disk


def refuse_existing(out: Path, *, force: bool) -> None:
    """Refuse an output folder that exists, before any work is done. With `force` an artifact may be replaced.

    Raises:
        ArtifactError: the folder exists and may not be replaced.
    """
    file = next((p for p in out.absolute().parents if p.exists() and not p.is_dir()), None)
    if file is not None:
        raise ArtifactError(f"{out} cannot be a folder: {file} is a file", fix="Choose another folder with -o.")
    if not os.path.lexists(out):
        return
    if not force:
        raise ArtifactError(f"{out} exists", fix="Use --force to replace it, or choose another folder with -o.")
    if out.is_mount():
        raise ArtifactError(f"{out} is a mount point, which cannot be replaced", fix=f"Use -o {out}/NAME.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).exists()):
        raise ArtifactError(
            f"{out} exists and is not an artifact",
            fix="--force replaces artifacts only. Choose another folder with -o.",
        )


@contextmanager
def atomic_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `out`. It becomes `out` when the block ends well, and is removed otherwise.

    Raises:
        ArtifactError: `out` exists (see `refuse_existing`), may not be written, or the disk is full.
    """
    out = out.absolute()
    refuse_existing(out, force=force)
    new_parents = _make_parents(out.parent)
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        folder.chmod(0o755)  # mkdtemp's 0700 would keep a CI user from reading what another user exported
        yield folder
        _sync(folder)
        _replace(folder, out)
    except BaseException as error:
        full = _is_disk_full(error, out.parent)  # before the removal frees space
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        if full:
            raise ArtifactError(
                f"the disk of {out.parent} is full", fix="Free some space, or choose another folder with -o."
            ) from error
        if isinstance(error, PermissionError):
            raise ArtifactError(
                f"no permission to write {error.filename}", fix="Choose another folder with -o."
            ) from None
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`. It becomes `path` when the block ends well, and is removed otherwise."""
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _make_parents(folder: Path) -> list[Path]:
    """Create `folder` and its parents. Return those that did not exist, innermost first."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"{folder} cannot be created: {error.strerror}", fix="Choose another folder with -o."
        ) from None
    return missing


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or path == folder:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _replace(folder: Path, out: Path) -> None:
    """Move `folder` to `out`. An older `out` is removed only after the new one is in place."""
    if not out.exists():
        folder.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    try:
        out.rename(old / out.name)
        folder.rename(out)
    except BaseException:
        if not out.exists():
            (old / out.name).rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _is_disk_full(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    return isinstance(error, Exception) and shutil.disk_usage(folder).free < _FULL_BELOW_BYTES
