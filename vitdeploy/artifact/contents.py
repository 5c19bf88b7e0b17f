"""The files of an artifact folder: those that its manifest lists, with their hashes, and evidence beside them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from vitdeploy.artifact.layout import EVIDENCE, MANIFEST, REPORT
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import FileEntry

_BESIDE = {MANIFEST, REPORT, *EVIDENCE}
"""Files that the manifest does not list."""
_UNFINISHED = re.compile(rf"\.({'|'.join(map(re.escape, sorted(_BESIDE)))})\.partial-\d+")
"""One of them while another process writes it: see `staging.atomic_file`."""
_DISTRUST = "Do not use it: somebody has changed it."


def verify_contents(folder: Path, files: Sequence[FileEntry]) -> None:
    """Check that a folder has the files that its manifest lists, unchanged, and no others. No link is followed.

    An engine may read files that nobody named, such as a graph's external data, so others than the listed ones are as
    dangerous as changed ones.

    Raises:
        ArtifactError: a file is missing, was changed, is not listed, or is not a plain file; or none is listed.
    """
    if not files:
        raise ArtifactError(f"{folder}: the manifest lists no file", fix=_DISTRUST)
    for entry in files:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or ".." in path.parts or not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(f"{folder}: the path {entry.path!r} leads out of the folder", fix=_DISTRUST)
    listed = {entry.path for entry in files}
    for name, mode in _walk(folder, folder):
        if not stat.S_ISREG(mode):
            raise ArtifactError(
                f"{folder}: {name} is not a plain file", fix="Copy the whole folder again, with files instead of links."
            )
        if name not in listed and name not in _BESIDE and not _UNFINISHED.fullmatch(name):
            raise ArtifactError(
                f"{folder}: {name} is not one of the artifact's files",
                fix="Move it elsewhere if you put it there. If not, do not use the artifact.",
            )
    for entry in files:
        _verify_file(folder, entry)


def read_plain(file: Path, limit: int) -> bytes:
    """Read a plain file of at most `limit` bytes.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        ArtifactError: it is not a plain file, is larger, or cannot be read.
    """
    try:
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        reason = "is not a plain file" if file.is_symlink() else f"cannot be read: {error.strerror}"
        raise ArtifactError(f"{file} {reason}", fix="Make the folder readable, with files instead of links.") from None
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > limit:
        os.close(handle)
        reason = f"has more than {limit >> 20} MiB" if stat.S_ISREG(facts.st_mode) else "is not a plain file"
        raise ArtifactError(f"{file} {reason}", fix=_DISTRUST)
    with os.fdopen(handle, "rb") as opened:
        return opened.read(limit)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _walk(folder: Path, root: Path) -> Iterator[tuple[str, int]]:
    """Yield everything below a folder except folders: the path from `root`, and the mode (of a link: its own)."""
    try:
        modes = {Path(entry): entry.stat(follow_symlinks=False).st_mode for entry in os.scandir(folder)}
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be read: {error.strerror}", fix="Make the folder readable.") from None
    for path, mode in modes.items():
        if stat.S_ISDIR(mode):
            yield from _walk(path, root)
        else:
            yield path.relative_to(root).as_posix(), mode


def _verify_file(folder: Path, entry: FileEntry) -> None:
    file = folder / entry.path
    if not file.is_file():
        raise ArtifactError(f"{folder}: {entry.path} is missing", fix="Copy the whole folder, or export it again.")
    try:
        intact = file.stat().st_size == entry.bytes and file_digest(file) == entry.sha256
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror}", fix="Make the folder readable.") from None
    if not intact:
        raise ArtifactError(
            f"{folder}: {entry.path} is not the file that was exported",
            fix="Copy the whole folder again, or export it again.",
        )
