"""The device's store of files by sha256. A stored file is never sent again; an interrupted transfer is continued."""

from __future__ import annotations

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
from vitdeploy.machine_lock import try_lock
from vitdeploy.remote.messages import Blob, FileHeader, MissingBlob, MissingBlobs

_CHUNK = 1 << 20
_KEPT_DAYS = 30  # a file that no job has used for so long is removed
_FILE_TOO_LARGE = 27  # EFBIG: the user's limit on file sizes (ulimit -f); for a transfer it is like a full disk


def cache_folder(path: str | None) -> Path:
    """Return the folder of files and jobs: `path`, or `~/.cache/vitdeploy`."""
    return Path(path).expanduser() if path else platformdirs.user_cache_path("vitdeploy")


class Store:
    """Files below a folder: complete and verified in `blobs/`, incomplete in `partial/`."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"
        self._partial = folder / "partial"
        try:
            for subfolder in (self._blobs, self._partial):
                subfolder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RemoteError(
                f"{folder} cannot be used: {error.strerror}",
                fix="Set `cache:` of this host in hosts.yaml to a folder that you may write.",
            ) from None

    def blob(self, sha256: str) -> Path:
        """Return the path of a stored file, whether it exists or not."""
        return self._blobs / sha256[:2] / sha256

    def find_missing(self, needed: Iterable[Blob]) -> MissingBlobs:
        """Check which of the `needed` contents are missing or damaged, and how many bytes of each are here."""
        gaps = [
            MissingBlob(**blob.model_dump(), have=self._count_partial(blob))
            for blob in needed
            if not self._is_intact(blob)
        ]
        return MissingBlobs(gaps=tuple(gaps), free_bytes=shutil.disk_usage(self._partial).free)

    def receive(self, stream: BufferedIOBase) -> int:
        """Store files from a stream of headers and bytes until it ends. Return how many are complete now.

        A stream that ends inside a file leaves the received part for the next transfer.

        Raises:
            RemoteError: the disk is full (the part is removed), or the bytes do not match the header's sha256.
        """
        complete = 0
        while line := stream.readline():
            try:
                header = FileHeader.model_validate_json(line)
            except ValidationError:
                return complete  # the stream ended inside a header
            try:
                complete += self._receive_file(header, stream)
            except OSError as error:
                if _is_of_full_disk(error):
                    raise RemoteError(
                        f"the disk of {self._partial.parent} is full",
                        fix="Free some space on the device, or set `cache:` of this host in hosts.yaml to another "
                        "disk.",
                    ) from None
                raise
        return complete

    def place(self, blob: Blob, path: Path) -> None:
        """Put a stored file at `path`: as a hard link, or as a copy where links are impossible.

        Raises:
            RemoteError: the file is not stored here.
        """
        source = self.blob(blob.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The time of access is that of the last use, for `prune`. That of change stays: a job that runs has the
            # same file, and checks that nobody changes it.
            os.utime(source, ns=(time.time_ns(), source.stat().st_mtime_ns))
            try:
                os.link(source, path)
            except OSError:
                shutil.copyfile(source, path)
        except FileNotFoundError:
            raise RemoteError(
                f"a file that the job needs is not on the device (sha256 {blob.sha256[:12]})",
                fix="Run the command again.",
            ) from None

    def prune(self, *, days: float = _KEPT_DAYS) -> int:
        """Remove files that no job has used for `days`. Return the bytes that became free."""
        freed = 0
        oldest = time.time() - days * 86400
        for path in (*self._blobs.rglob("*"), *self._partial.iterdir()):
            with suppress(FileNotFoundError):  # another process prunes at the same time
                stat = path.stat()
                if path.is_file() and max(stat.st_atime, stat.st_mtime) <= oldest and _remove_unlocked(path):
                    freed += stat.st_size if stat.st_nlink == 1 else 0
        return freed

    def _is_intact(self, blob: Blob) -> bool:
        path = self.blob(blob.sha256)
        if not path.is_file():
            return False
        if path.stat().st_size == blob.bytes and file_digest(path) == blob.sha256:
            return True
        path.unlink(missing_ok=True)  # the disk lost data, or somebody changed the file
        return False

    def _count_partial(self, blob: Blob) -> int:
        """Count the bytes to continue from. While another client sends the same file, this is 0: start anew."""
        try:
            with (self._partial / blob.sha256).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                return size if try_lock(file) and size <= blob.bytes else 0
        except FileNotFoundError:
            return 0

    def _receive_file(self, header: FileHeader, stream: BufferedIOBase) -> int:
        path = self._partial / header.sha256
        with path.open("ab") as file:
            if try_lock(file) and _is_at(path, file) and os.fstat(file.fileno()).st_size >= header.offset:
                with _removed_if_full(path):
                    return self._write(header, stream, file, path)
        if header.offset:
            raise RemoteError(
                f"another client is sending the same file (sha256 {header.sha256[:12]})", fix="Run the command again."
            )
        private = path.with_name(f"{header.sha256}.{os.getpid()}")
        try:
            with private.open("ab") as file:
                try_lock(file)  # nobody else knows it, but `_remove_unlocked` asks
                return self._write(header, stream, file, private)
        finally:
            private.unlink(missing_ok=True)

    def _write(self, header: FileHeader, stream: BufferedIOBase, file: BinaryIO, path: Path) -> int:
        file.truncate(header.offset)
        remaining = header.bytes - header.offset
        while remaining > 0 and (chunk := stream.read1(min(remaining, _CHUNK))):
            file.write(chunk)
            remaining -= len(chunk)
        file.flush()
        if remaining:
            return 0
        os.fsync(file.fileno())
        if file_digest(path) != header.sha256:
            path.unlink()
            raise RemoteError(
                f"a file was damaged on the way (sha256 {header.sha256[:12]})", fix="Run the command again."
            )
        final = self.blob(header.sha256)
        final.parent.mkdir(exist_ok=True)
        path.chmod(0o444)
        path.replace(final)
        return 1


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Return whether an open file is still at `path`. Before it was locked, another client may have stored it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _is_of_full_disk(error: OSError) -> bool:
    return error.errno in (*DISK_FULL, _FILE_TOO_LARGE)


@contextmanager
def _removed_if_full(path: Path) -> Iterator[None]:
    """Remove a part that this client writes and has locked, if the disk is full. Those of others stay."""
    try:
        yield
    except OSError as error:
        if _is_of_full_disk(error):
            path.unlink(missing_ok=True)
        raise


def _remove_unlocked(path: Path) -> bool:
    """Remove a file unless a client writes it. The lock is kept meanwhile, so that none begins in between."""
    with path.open("rb") as file:
        if not try_lock(file) or not _is_at(path, file):
            return False
        path.unlink()
        return True
