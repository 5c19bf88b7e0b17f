"""The files of an artifact folder: those that its manifest lists, with their hashes, and evidence beside them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vitdeploy.artifact.external_data import list_locations
from vitdeploy.artifact.layout import BESIDE, MANIFEST
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import FileEntry
from vitdeploy.plain_files import UnusableFile, open_plain

_BESIDE = {MANIFEST, *BESIDE}
"""Files that the manifest does not list."""
_UNFINISHED = re.compile(rf"\.({'|'.join(map(re.escape, sorted(_BESIDE)))})\.partial-[0-9a-f]+")
"""One of them while another process writes it: see `temporary.atomic_file`."""
_DISTRUST = "Do not use it: somebody has changed it."
_GRAPHS = ".onnx"
_CHUNK_BYTES = 1 << 20
_MAX_FOLDERS = 4096  # below an artifact: a bundle has a folder for each variant


@dataclass(frozen=True)
class FileState:
    """The facts of the file system about a file that was hashed. Another file, or another content, has other facts."""

    sha256: str
    device: int
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, facts: os.stat_result, sha256: str) -> FileState:
        """Return the state in the facts of `os.stat`."""
        return cls(sha256, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def verify_contents(folder: Path, files: Sequence[FileEntry]) -> dict[str, FileState]:
    """Check that a folder has the files that its manifest lists, unchanged, and no others. No link is followed.

    An engine may read files that nobody named, such as a graph's external data, so others than the listed ones are as
    dangerous as changed ones. A file is read up to the size that the manifest says, so the manifest bounds the time.

    Returns:
        The state of each file while it was hashed, for `check_unchanged`.

    Raises:
        ArtifactError: a file is missing, was changed, is not listed, or is not a plain file; or none is listed; or a
            graph refers to a file that is not listed.
    """
    if not files:
        raise ArtifactError(f"{folder}: the manifest lists no file", fix=_DISTRUST)
    for entry in files:
        if not _stays_inside(folder, entry.path):
            raise ArtifactError(f"{folder}: the path {entry.path!r} leads out of the folder", fix=_DISTRUST)
    listed = {entry.path for entry in files}
    for name, mode in _walk(folder):
        if not stat.S_ISREG(mode):
            raise ArtifactError(
                f"{folder}: {name} is not a plain file", fix="Copy the whole folder again, with files instead of links."
            )
        if name not in listed and name not in _BESIDE and not _UNFINISHED.fullmatch(name):
            raise ArtifactError(
                f"{folder}: {name} is not one of the artifact's files",
                fix="Move it elsewhere if you put it there. If not, do not use the artifact.",
            )
    states = {entry.path: _verify_file(folder, entry) for entry in files}
    for entry in files:
        if entry.path.endswith(_GRAPHS):
            _check_locations(folder, entry.path, listed)
    return states


def find_unlisted(folder: Path, listed: Collection[str], verified: Collection[str]) -> list[str]:
    """Return what is in a folder beside its listed files, sorted: other files, and links and pipes of any name.

    Args:
        folder: the folder.
        listed: the names of its files.
        verified: folders in it whose contents were verified by themselves.

    Raises:
        ArtifactError: a folder cannot be read, or there are too many.
    """
    others = []
    for name, mode in _walk(folder):
        if name.partition("/")[0] in verified and "/" in name:
            continue
        if not stat.S_ISREG(mode) or not (name in listed or _UNFINISHED.fullmatch(name)):
            others.append(name)
    return sorted(others)


def check_unchanged(folder: Path, states: Mapping[str, FileState]) -> None:
    """Check that the files are still those that were hashed. Call it after an engine has opened them.

    Raises:
        ArtifactError: a file was changed or replaced.
    """
    for name, state in states.items():
        if not _is_unchanged(folder / name, state):
            raise ArtifactError(
                f"{folder}: {name} was changed while it was opened", fix="Run it again when nothing writes there."
            )


def _is_unchanged(file: Path, state: FileState) -> bool:
    try:
        now = FileState.of(file.lstat(), state.sha256)
        if now == state:
            return True
        # A further hard link, or other rights, change the time of the inode only.
        return replace(now, changed_ns=state.changed_ns) == state and file_digest(file) == state.sha256
    except OSError:
        return False


def read_plain(file: Path, limit: int) -> bytes:
    """Read a plain file of at most `limit` bytes.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        ArtifactError: it is not a plain file, is larger, or cannot be read.
    """
    with _open(file, limit) as opened:
        return opened.read(limit)


def digest_evidence(record: str, digest: str, files: Mapping[str, str], parts: Mapping[str, str] | None = None) -> str:
    """Return one sha256 over an artifact or family and the evidence about it.

    Args:
        record: manifest.json or family.json.
        digest: its sha256.
        files: the sha256 of evidence and raw data, by name.
        parts: of a family: what this function returned for each part.
    """
    lines = [f"{name} {value}" for name, value in ((record, digest), *files.items(), *(parts or {}).items())]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def check_in_place(folder: Path, record: str, digest: str, limit: int) -> None:
    """Check that no other artifact or family has taken the place of one whose record has this sha256.

    Raises:
        ArtifactError: another one has.
    """
    try:
        content = read_plain(folder / record, limit)
    except (FileNotFoundError, NotADirectoryError):
        content = b""
    if hashlib.sha256(content).hexdigest() != digest:
        kind = "artifact" if record == MANIFEST else "family"
        raise ArtifactError(
            f"{folder} was replaced by another {kind} while this command ran, so nothing was written into it",
            fix="Run the command again.",
        )


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _open(file: Path, limit: int | None = None) -> BinaryIO:
    """Open a plain file without following a link, or waiting for a pipe or a device.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        ArtifactError: it is not a plain file, is larger than `limit` bytes, or cannot be read.
    """
    try:
        return open_plain(file, limit, follow=False)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except IsADirectoryError:
        raise ArtifactError(f"{file} is not a plain file", fix=_DISTRUST) from None
    except UnusableFile as error:
        raise ArtifactError(f"{file} {error.reason.removeprefix('it ')}", fix=_DISTRUST) from None
    except OSError as error:
        reason = "is not a plain file" if file.is_symlink() else f"cannot be read: {error.strerror}"
        raise ArtifactError(f"{file} {reason}", fix="Make the folder readable, with files instead of links.") from None


def _stays_inside(folder: Path, name: str) -> bool:
    path = PurePosixPath(name)
    try:
        resolved = (folder / path).resolve()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have; links in a circle
        return False
    return not path.is_absolute() and ".." not in path.parts and resolved.is_relative_to(folder.resolve())


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    """Yield everything below `root` except folders: the path from `root`, and the mode (of a link: its own)."""
    pending, count = [root], 0
    while pending:
        folder = pending.pop()
        count += 1
        if count > _MAX_FOLDERS:
            raise ArtifactError(f"{root} has more than {_MAX_FOLDERS} folders in it", fix=_DISTRUST)
        try:
            with os.scandir(folder) as entries:
                modes = {Path(entry): entry.stat(follow_symlinks=False).st_mode for entry in entries}
        except OSError as error:
            raise ArtifactError(f"{folder} cannot be read: {error.strerror}", fix="Make the folder readable.") from None
        for path, mode in modes.items():
            if stat.S_ISDIR(mode):
                pending.append(path)
            else:
                yield path.relative_to(root).as_posix(), mode


def _verify_file(folder: Path, entry: FileEntry) -> FileState:
    """Return the state of a file that has the size and the sha256 of its entry, before and after it was read."""
    try:
        with _open(folder / entry.path) as file:
            before = FileState.of(os.fstat(file.fileno()), entry.sha256)
            intact = before.bytes == entry.bytes and _digest(file, entry.bytes) == entry.sha256
            intact = intact and before == FileState.of(os.fstat(file.fileno()), entry.sha256)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder}: {entry.path} is missing", fix="Copy the whole folder, or export it again."
        ) from None
    except OSError as error:
        raise ArtifactError(
            f"{folder / entry.path} cannot be read: {error.strerror}", fix="Make the folder readable."
        ) from None
    if not intact:
        raise ArtifactError(
            f"{folder}: {entry.path} is not the file that was exported",
            fix="Copy the whole folder again, or export it again.",
        )
    return before


def _digest(file: BinaryIO, size: int) -> str:
    """Return the sha256 of the first `size` bytes."""
    digest = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(_CHUNK_BYTES, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _check_locations(folder: Path, name: str, listed: set[str]) -> None:
    """Check that the external data of a graph is in listed files, which are hashed; evidence beside them is not."""
    try:
        locations = list_locations(folder / name)
    except ValueError as error:
        raise ArtifactError(f"{folder}: {name} is not a readable graph: {error}", fix=_DISTRUST) from None
    for location in locations:
        if ".." in PurePosixPath(location).parts or (PurePosixPath(name).parent / location).as_posix() not in listed:
            raise ArtifactError(
                f"{folder}: {name} reads {location!r}, which is not one of the artifact's files", fix=_DISTRUST
            )
