"""Folders and files that appear whole or not at all: written beside their place, synced, then renamed."""

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
_FULL_BELOW_BYTES = 1 << 20  # a disk with less free than this is why a library failed to write, whatever it says


def refuse_existing(out: Path, *, force: bool) -> None:
    """Refuse an output folder that exists, before any work is done; `force` only replaces what vitdeploy made.

    Raises:
        ArtifactError: the folder exists and may not be replaced.
    """
    blocking = next((p for p in out.absolute().parents if p.exists() and not p.is_dir()), None)
    if blocking is not None:
        raise ArtifactError(f"{out} cannot be a folder: {blocking} is a file", fix="Use -o elsewhere.")
    if not os.path.lexists(out):
        return
    if not force:
        raise ArtifactError(f"{out} exists", fix="Use --force to replace it, or -o for another folder.")
    if out.is_mount():
        raise ArtifactError(f"{out} is a mount point, which cannot be replaced", fix=f"Use -o {out}/NAME.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).exists()):
        raise ArtifactError(
            f"{out} exists and is not an artifact", fix="--force replaces artifacts only; use another -o."
        )


@contextmanager
def staged(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A new folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    Raises:
        ArtifactError: `out` exists (see `refuse_existing`), or the disk is full.
    """
    out = out.absolute()
    refuse_existing(out, force=force)
    made = _make_parents(out.parent)
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        folder.chmod(0o755)  # mkdtemp's 0700 would keep a CI user from reading what another user exported
        yield folder
        _sync(folder)
        _replace(folder, out)
    except BaseException as error:
        full = _disk_full(error, out.parent)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if full:
            raise ArtifactError(
                f"the disk of {out.parent} is full", fix="Free some space, or use -o elsewhere."
            ) from error
        if isinstance(error, PermissionError):
            raise ArtifactError(f"{error.filename} may not be written", fix="Use -o for a folder of yours.") from None
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _make_parents(folder: Path) -> list[Path]:
    """Create `folder`; those that did not exist are returned, innermost first."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be created: {error.strerror}", fix="Use -o elsewhere.") from None
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
    """Put `folder` in the place of `out`; the old one goes only after the new one stands."""
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


def _disk_full(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    return isinstance(error, Exception) and shutil.disk_usage(folder).free < _FULL_BELOW_BYTES
