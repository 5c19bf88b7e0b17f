"""Write folders that appear complete or not at all: beside their place first, synced, then exchanged with it.

    .NAME.partial-RANDOM   a new folder, or an old one that is being removed; a live process has locked it
    .NAME.old-RANDOM       the folder that a new one is replacing, where two names cannot be exchanged in one step

The lock on the parent folder is held while one of them is created, takes its place, or is put back.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitdeploy.artifact.layout import FAMILY, MANIFEST, SITES
from vitdeploy.artifact.locks import locked
from vitdeploy.artifact.renames import exchange, rename_new
from vitdeploy.artifact.temporary import (
    OLD,
    PARTIAL,
    create_folder,
    find_hidden,
    hidden_name,
    remove,
    remove_abandoned,
    sync_folder,
)
from vitdeploy.errors import ArtifactError, UsageError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_BELOW_BYTES = 1 << 20  # with less free space, any failed write is reported as a full disk
_ELSEWHERE = "Choose another folder with -o."
ARTIFACT = (MANIFEST, FAMILY)
"""A folder with one of these files is an artifact."""


def refuse_existing(out: Path, *, force: bool) -> None:
    """Refuse an output folder that exists, before any work is done. With `force` an artifact may be replaced.

    Raises:
        ArtifactError: the folder exists and may not be replaced.
        UsageError: it is inside of an artifact.
    """
    recover(out)
    _refuse_existing(out, force=force, marks=ARTIFACT)


def refuse_inside(out: Path, artifact: Path) -> None:
    """Refuse an output inside of an artifact's folder, or of its family's: it would be an unlisted file there.

    Raises:
        UsageError: it is inside.
    """
    place, folder = out.resolve(), artifact.resolve()
    family = folder.parent if (folder.parent / FAMILY).is_file() else folder
    for kind, closed in (("artifact", folder), ("family of the artifact", family)):
        if place.is_relative_to(closed):
            raise UsageError(
                f"{out} is inside the {kind}, which takes no other files", fix="Choose a place outside of it with -o."
            )


def refuse_enclosed(out: Path) -> None:
    """Refuse an output inside of any artifact's or family's folder: it would be an unlisted file there.

    Raises:
        UsageError: it is inside.
    """
    for folder in out.resolve().parents:
        if (folder / FAMILY).is_file() or ((folder / MANIFEST).is_file() and (folder / SITES).is_file()):
            refuse_inside(out, folder)


@contextmanager
def atomic_folder(
    out: Path,
    *,
    force: bool = False,
    replaces: str | None = None,
    durable: bool = True,
    marks: tuple[str, ...] = ARTIFACT,
) -> Iterator[Path]:
    """Yield a new folder beside `out`. It becomes `out` when the block ends well, and is removed otherwise.

    Whether `out` may be replaced is asked before the block, and again when it is replaced.

    Args:
        out: the place of the folder.
        force: replace an artifact that is there.
        replaces: the digest of the manifest that may be replaced; None: any.
        durable: sync every file to the disk first. A cache does not need that.
        marks: files of which one is in a folder that `force` may replace.

    Raises:
        ArtifactError: `out` exists (see `refuse_existing`), another process is writing it, it may not be written, or
            the disk is full.
        UsageError: `out` is inside of an artifact.
    """
    out = out.absolute()
    recover(out)
    _refuse_existing(out, force=force, marks=marks)
    new_parents = _make_parents(out.parent)
    folder, handle, is_filled = None, None, False
    try:
        folder, handle = _create(out, force=force, marks=marks)
        yield folder
        is_filled = True
        if durable:
            _sync(folder)
        _move(folder, out, force=force, replaces=replaces, marks=marks)
    except BaseException as error:
        full = _is_disk_full(error, out.parent)  # before the removal frees space
        if folder is not None:
            remove(folder)
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        if (explained := _explain(error, out, full=full, is_ours=folder is None or is_filled)) is not None:
            raise explained from error
        raise
    finally:
        if handle is not None:
            os.close(handle)


def recover(out: Path) -> bool:
    """Put back a folder that a killed process had moved away to replace it. Return True if `out` exists now.

    Raises:
        ArtifactError: it cannot be moved.
    """
    if os.path.lexists(out):
        return True
    out = out.absolute()
    if not find_hidden(out.parent, out.name, OLD):
        return False
    with locked(out.parent):  # a live process that is replacing it holds the lock
        olds = () if os.path.lexists(out) else find_hidden(out.parent, out.name, OLD)
        for old in olds:
            inside = old / out.name  # where version 0.1 put it
            place = inside if (inside / MANIFEST).exists() else old
            try:
                rename_new(place, out)
                sync_folder(out.parent)
            except OSError as error:
                raise ArtifactError(
                    f"a killed process has left {out} as {place}, which cannot be renamed: {error.strerror}",
                    fix="Rename it yourself.",
                ) from None
            if place != old:
                remove(old)
            break
    return os.path.lexists(out)


def _refuse_existing(out: Path, *, force: bool, marks: tuple[str, ...]) -> None:
    refuse_enclosed(out)
    file = next((p for p in out.absolute().parents if p.exists() and not p.is_dir()), None)
    if file is not None:
        raise ArtifactError(f"{out} cannot be a folder: {file} is a file", fix=_ELSEWHERE)
    if not os.path.lexists(out):
        return
    if not force:
        raise ArtifactError(f"{out} exists", fix="Use --force to replace it, or choose another folder with -o.")
    if out.is_mount():
        raise ArtifactError(f"{out} is a mount point, which cannot be replaced", fix=f"Use -o {out}/NAME.")
    is_ours = any((out / name).exists() for name in marks)
    if not out.is_dir() or (any(out.iterdir()) and not is_ours):
        if marks != ARTIFACT:
            raise ArtifactError(
                f"{out} exists, and is not one that --force replaces: it has no {marks[0]}", fix=_ELSEWHERE
            )
        raise ArtifactError(
            f"{out} exists and is not an artifact", fix=f"--force replaces artifacts only. {_ELSEWHERE}"
        )


def _create(out: Path, *, force: bool, marks: tuple[str, ...]) -> tuple[Path, int | None]:
    """Create and lock the new folder, and remove those that dead processes have left."""
    with locked(out.parent):
        _refuse_existing(out, force=force, marks=marks)
        if remove_abandoned(out.parent, out.name):
            raise ArtifactError(
                f"another process is writing {out}", fix="Wait until it ends, or choose another folder with -o."
            )
        if os.path.lexists(out):  # else it is the only copy, and `recover` puts it back
            for old in find_hidden(out.parent, out.name, OLD):
                remove(old)
        return create_folder(out)


def _make_parents(folder: Path) -> list[Path]:
    """Create `folder` and its parents. Return those that did not exist, innermost first."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be created: {error.strerror}", fix=_ELSEWHERE) from None
    return missing


def _sync(folder: Path) -> None:
    """Write all files of a folder, and the lists of its folders, to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def _move(folder: Path, out: Path, *, force: bool, replaces: str | None, marks: tuple[str, ...]) -> None:
    """Let `folder` take the place of `out`, if that is still allowed, and remove an older one."""
    with locked(out.parent):
        _refuse_existing(out, force=force, marks=marks)
        if replaces is not None:
            _check_same(out, replaces)
        old = _replace(folder, out)
        sync_folder(out.parent)
    if old is not None:
        remove(old)


def _check_same(out: Path, digest: str) -> None:
    try:
        name = FAMILY if (out / FAMILY).exists() else MANIFEST
        present = hashlib.sha256((out / name).read_bytes()).hexdigest()
    except OSError:
        present = ""
    if present != digest:
        raise ArtifactError(
            f"{out} was replaced by another process meanwhile", fix="Run the command again, or choose another folder."
        )


def _replace(folder: Path, out: Path) -> Path | None:
    """Move `folder` to `out`. Return the name that an older `out` has now, for removal."""
    if not os.path.lexists(out):
        try:
            rename_new(folder, out)
        except FileExistsError:
            raise ArtifactError(f"another process has just written {out}", fix=_ELSEWHERE) from None
        return None
    if exchange(folder, out):
        return folder
    old = out.with_name(hidden_name(out.name, OLD))
    try:
        out.rename(old)  # from here to the next line only `recover` finds it
        folder.rename(out)
    except BaseException:
        if not os.path.lexists(out):
            old.rename(out)
        raise
    removed = out.with_name(hidden_name(out.name, PARTIAL))
    old.rename(removed)
    return removed


def _explain(error: BaseException, out: Path, *, full: bool, is_ours: bool) -> ArtifactError | None:
    """Return the error in words of a user, if it is about writing the folder. `is_ours`: no caller's code raised it."""
    if full:
        return ArtifactError(
            f"the disk of {out.parent} is full", fix="Free some space, or choose another folder with -o."
        )
    if isinstance(error, PermissionError):
        return ArtifactError(f"no permission to write {error.filename}", fix=_ELSEWHERE)
    file = error.filename if isinstance(error, OSError) else None
    is_inside = isinstance(file, str) and Path(file).is_relative_to(out.parent)
    if isinstance(error, OSError) and (is_ours or is_inside):
        return ArtifactError(f"{out} cannot be written: {error.strerror or error}", fix=f"Check the disk. {_ELSEWHERE}")
    return None


def _is_disk_full(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    return isinstance(error, Exception) and shutil.disk_usage(folder).free < _FULL_BELOW_BYTES
