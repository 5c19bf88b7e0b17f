"""Files by their sha256, on the device: what is there is never sent again, and a transfer that was cut goes on."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

import platformdirs
from pydantic import ValidationError

from vitdeploy.artifact import DISK_FULL, file_digest
from vitdeploy.errors import RemoteError
from vitdeploy.remote.messages import Blob, Gap, Header, Missing

_CHUNK = 1 << 20
_KEPT_DAYS = 30  # files that no job has used for so long are removed
_TOO_LARGE = 27  # EFBIG: a limit on file sizes (ulimit -f), another way to be full


def cache_folder(wanted: str | None) -> Path:
    """Where files and jobs lie: `wanted`, else `~/.cache/vitdeploy`."""
    return Path(wanted).expanduser() if wanted else platformdirs.user_cache_path("vitdeploy")


class Store:
    """The files below a folder: `blobs/` whole and verified, `partial/` on the way."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"
        self._partial = folder / "partial"
        try:
            for made in (self._blobs, self._partial):
                made.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RemoteError(f"{folder} cannot be used: {error.strerror}", fix="Name another `cache:`.") from None

    def blob(self, sha256: str) -> Path:
        """The place of a file."""
        return self._blobs / sha256[:2] / sha256

    def missing(self, wanted: Iterable[Blob]) -> Missing:
        """Of `wanted`, what is not here or no longer what it was; and how much of it a cut transfer has left."""
        gaps = [Gap(**blob.model_dump(), have=self._have(blob)) for blob in wanted if not self._intact(blob)]
        return Missing(gaps=tuple(gaps), free_bytes=shutil.disk_usage(self._partial).free)

    def receive(self, stream: BufferedIOBase) -> int:
        """Store files from a stream of headers and bytes until it ends; how many became whole.

        A stream that ends in the middle leaves the part for the next one.

        Raises:
            RemoteError: the disk is full (the part is removed), or bytes that are not those of the header.
        """
        whole = 0
        while line := stream.readline():
            try:
                header = Header.model_validate_json(line)
            except ValidationError:
                return whole  # a header that was cut
            try:
                whole += self._receive_one(header, stream)
            except OSError as error:
                if error.errno in (*DISK_FULL, _TOO_LARGE):
                    (self._partial / header.sha256).unlink(missing_ok=True)
                    raise RemoteError(
                        f"the disk of {self._partial.parent} is full",
                        fix="Free some space there, or name another `cache:`.",
                    ) from None
                raise
        return whole

    def place(self, blob: Blob, where: Path) -> None:
        """Put the file into a job's folder: a hard link, or a copy where that cannot be.

        Raises:
            RemoteError: it is not here.
        """
        source = self.blob(blob.sha256)
        where.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.utime(source)  # when it was last used
            try:
                os.link(source, where)
            except OSError:
                shutil.copyfile(source, where)
        except FileNotFoundError:
            raise RemoteError(f"{blob.sha256[:12]} has not been sent", fix="Run the command again.") from None

    def prune(self, *, days: float = _KEPT_DAYS) -> int:
        """Remove what no job has used for `days`; the bytes that became free."""
        freed = 0
        oldest = time.time() - days * 86400
        for path in (*self._blobs.rglob("*"), *self._partial.iterdir()):
            with suppress(FileNotFoundError):  # another one prunes too
                found = path.stat()
                if path.is_file() and found.st_mtime <= oldest and not _on_its_way(path):
                    path.unlink()
                    freed += found.st_size if found.st_nlink == 1 else 0
        return freed

    def _intact(self, blob: Blob) -> bool:
        path = self.blob(blob.sha256)
        if not path.is_file():
            return False
        if path.stat().st_size == blob.bytes and file_digest(path) == blob.sha256:
            return True
        path.unlink(missing_ok=True)  # a disk that lost it, or somebody who wrote into it
        return False

    def _have(self, blob: Blob) -> int:
        """Bytes to go on from; none while somebody else is writing them: then this transfer is one of its own."""
        try:
            with (self._partial / blob.sha256).open("rb") as file, _locked(file) as mine:
                size = os.fstat(file.fileno()).st_size
                return size if mine and size <= blob.bytes else 0
        except FileNotFoundError:
            return 0

    def _receive_one(self, header: Header, stream: BufferedIOBase) -> int:
        path = self._partial / header.sha256
        with path.open("ab") as file, _locked(file) as mine:
            if mine and os.fstat(file.fileno()).st_size >= header.offset:
                return self._write(header, stream, file, path)
        if header.offset:
            raise RemoteError(f"{header.sha256[:12]} is being sent by somebody else", fix="Run the command again.")
        own = path.with_name(f"{header.sha256}.{os.getpid()}")
        try:
            with own.open("ab") as file, _locked(file):
                return self._write(header, stream, file, own)
        finally:
            own.unlink(missing_ok=True)

    def _write(self, header: Header, stream: BufferedIOBase, file: BinaryIO, path: Path) -> int:
        file.truncate(header.offset)
        left = header.bytes - header.offset
        while left > 0 and (piece := stream.read1(min(left, _CHUNK))):
            file.write(piece)
            left -= len(piece)
        file.flush()
        if left:
            return 0
        os.fsync(file.fileno())
        if file_digest(path) != header.sha256:
            path.unlink()
            raise RemoteError(f"{header.sha256[:12]} arrived damaged", fix="Run the command again.")
        final = self.blob(header.sha256)
        final.parent.mkdir(exist_ok=True)
        path.chmod(0o444)
        path.replace(final)
        return 1


def _on_its_way(path: Path) -> bool:
    """Whether somebody writes it now."""
    with path.open("rb") as file, _locked(file) as mine:
        return not mine


@contextmanager
def _locked(file: BinaryIO) -> Iterator[bool]:
    """Whether this process alone writes the file; the lock ends with the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
