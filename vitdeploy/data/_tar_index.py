"""The files in an uncompressed tar: their names and places, without unpacking anything."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vitdeploy.errors import DataError

_MAX_HEADER_BYTES = 16 << 10
"""Of one header with long names: a path has at most 4,096 bytes. `tarfile` searches headers with slow expressions."""
_BLOCK = 512
_MAX_PADDING = 1 << 20
"""Behind the end there is padding, 10 KiB with most writers."""
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_FIX = "Write the shard again, as an uncompressed tar."


class Member(NamedTuple):
    """A file in a tar: its name, where its contents begin, and their bytes."""

    name: str
    offset: int
    size: int


def list_members(shard: Path, file: BinaryIO) -> Iterator[Member]:
    """Yield the plain files in a tar, in its order. Folders are left out.

    Args:
        shard: the path, for messages.
        file: the open shard. It may be read between two members.

    Raises:
        DataError: it is damaged, truncated, compressed, empty, or has a link or a device in it.
    """
    _refuse_other_formats(shard, file)
    headers = _Headers(file)
    after = ""
    try:
        with tarfile.open(fileobj=headers, mode="r:") as tar:
            end = 0
            while (info := tar.next()) is not None:
                if info.size < 0 or tar.offset <= end:  # Python before 3.13.6 would go round in circles
                    raise DataError(f"{shard}: the size of {info.name!r} is not possible", fix=_FIX)
                end, after = tar.offset, f" after {info.name!r}"
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them in memory
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise DataError(f"{shard}: {info.name!r} is not a plain file", fix="Write plain files only.")
                yield Member(info.name.removeprefix("./"), info.offset_data, info.size)
            _check_end(shard, file, end, after)
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError, EOFError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{shard} is damaged or truncated{after}: {reason}", fix=_FIX) from None


def _refuse_other_formats(shard: Path, file: BinaryIO) -> None:
    start = file.read(_BLOCK)
    file.seek(0)
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{shard} is compressed with {name}", fix=f"Unpack it with {name} -d, to read it by place.")
    if not start:
        raise DataError(f"{shard} is empty", fix=_FIX)


def _check_end(shard: Path, file: BinaryIO, end: int, after: str) -> None:
    """Check that a tar ends where no further member was read: `tarfile` takes any damaged header for the end.

    Raises:
        DataError: the block of zeros is missing, or something follows behind it.
    """
    file.seek(end)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise DataError(f"{shard} is truncated{after}", fix=_FIX)
    if any(block):
        raise DataError(f"{shard} is damaged{after}", fix=_FIX)
    if any(file.read(_MAX_PADDING)):
        raise DataError(f"{shard} goes on behind its end", fix="Do not join tars; give them as several shards.")


class _Headers(io.RawIOBase):
    """A file of which only headers are read, so that none of them can ask for much memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Read some bytes."""
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()
