"""Read `.npy` and `.npz` files: nothing is unpickled, and sizes are checked before memory is taken."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from vitdeploy.errors import DataError
from vitdeploy.limits import MAX_DATA_BYTES
from vitdeploy.plain_files import open_plain
from vitdeploy.session import Array

_MAX_ARRAYS = 4096
_PIECE_BYTES = 1 << 24
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Those of numpy.savez and savez_compressed."""
_DAMAGED = (
    ValueError, TypeError, SyntaxError, EOFError, OverflowError, RecursionError, MemoryError, tokenize.TokenError,
)  # fmt: skip
"""The exceptions that NumPy raises for a damaged header. It reads headers of Python 2 with `tokenize`."""


def read_npz(path: Path, fix: str) -> dict[str, Array]:
    """Read all arrays of a file. `fix` is for the errors.

    Raises:
        DataError: the file is missing, damaged or too large, or has pickled objects.
    """
    try:
        with open_plain(path, MAX_DATA_BYTES.value) as file:
            return read_members(path, file, fix)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", fix=fix) from None


def read_npy(path: Path, fix: str) -> Array:
    """Read the array of a file. `fix` is for the errors.

    Raises:
        DataError: the file is missing, damaged or too large, or has pickled objects.
    """
    try:
        with open_plain(path, MAX_DATA_BYTES.value) as file:
            size = file.seek(0, 2)
            file.seek(0)
            return read_array(path, file, size, fix)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", fix=fix) from None


def read_members(name: Path | str, file: BinaryIO, fix: str, limit: int | None = None) -> dict[str, Array]:
    """Read all arrays of an open `.npz` file of at most `limit` bytes, unpacked; None: `MAX_DATA_BYTES`.

    Args:
        name: of the file, for errors.
        file: the open file.
        fix: for errors.
        limit: the most bytes of all arrays.

    Raises:
        DataError: it is damaged or too large, or has pickled objects.
    """
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for member in _list_members(name, archive, fix, limit):
                with archive.open(member) as content:
                    array = read_array(name, content, member.file_size, fix)
                arrays[member.filename.removesuffix(".npy")] = array
    except zipfile.BadZipFile:
        raise DataError(f"{name} is not an .npz file, or it is truncated", fix=fix) from None
    except (ValueError, EOFError, zipfile.LargeZipFile, NotImplementedError, zlib.error) as error:
        raise _unreadable(name, error, fix) from None
    return arrays


def _list_members(name: Path | str, archive: zipfile.ZipFile, fix: str, limit: int | None) -> list[zipfile.ZipInfo]:
    """List the members of an archive, of which nothing is unpacked yet.

    Raises:
        DataError: they are too large or too many, have one name, or are packed in another way than NumPy's.
    """
    members = archive.infolist()
    size = sum(member.file_size for member in members)
    if size > (limit or MAX_DATA_BYTES.value):
        raise DataError(f"{name} has {size:,} bytes once unpacked", fix=fix if limit else MAX_DATA_BYTES.fix)
    if len(members) > _MAX_ARRAYS:
        raise DataError(f"{name} has {len(members):,} arrays", fix=fix)
    names: set[str] = set()
    for member in members:
        array = member.filename.removesuffix(".npy")
        if array in names:
            raise DataError(f"{name} has two arrays {array!r}", fix=fix)
        if member.compress_type not in _METHODS or member.flag_bits & 1:
            raise DataError(f"{name} is packed in a way that NumPy does not write", fix=fix)
        names.add(array)
    return members


def read_array(path: Path | str, file: IO[bytes], size: int, fix: str) -> Array:
    """Read an array from a file or member of `size` bytes. Its header must describe just as many.

    Raises:
        DataError: it is damaged, or has pickled objects.
    """
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise DataError(f"{path} cannot be read: it contains pickled objects", fix=fix)
        count = math.prod(shape)
        if any(side < 0 for side in shape) or dtype.itemsize == 0 or count * dtype.itemsize != size - file.tell():
            raise DataError(f"{path} cannot be read: an array is not as large as its header says", fix=fix)
        flat = np.empty(count, dtype)
        _fill(flat, file)
        return flat.reshape(shape[::-1]).transpose() if fortran else flat.reshape(shape)
    except _DAMAGED as error:
        raise _unreadable(path, error, fix) from None


def _fill(flat: Array, file: IO[bytes]) -> None:
    """Read a one-dimensional array in pieces, so that its bytes are in memory once."""
    values = flat.view(np.uint8)
    for begin in range(0, len(values), _PIECE_BYTES):
        piece = values[begin : begin + _PIECE_BYTES]
        piece[:] = np.frombuffer(file.read(len(piece)), np.uint8)  # fewer bytes do not fit, which is a ValueError


def _unreadable(path: Path | str, error: BaseException, fix: str) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{path} cannot be read as a plain array: {reason}", fix=fix)
