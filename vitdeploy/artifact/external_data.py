"""List the files that an ONNX file refers to. It reads Protocol Buffers itself: a device has no onnx package.

Fields are those of onnx.proto; the encoding is https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_MAX_DEPTH = 64  # graphs in attributes of nodes in graphs …; the onnx package refuses more than 100 messages in another
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES = 10

_KEY, _VALUE = 1, 2  # of a StringStringEntryProto
_EXTERNAL_DATA = 13  # of a TensorProto
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {_EXTERNAL_DATA: "entry"},
}
"""The messages that may have a tensor in them: by message, the numbers of those fields and what each is."""


class _Field(NamedTuple):
    """A field of a message: its number, and where its bytes begin and end; of a number, both are 0."""

    number: int
    begin: int
    end: int


def list_locations(path: Path) -> list[str]:
    """List the locations of external data in an ONNX file, as they are written there.

    Raises:
        ValueError: the file refers to other files, but is not readable as ONNX.
    """
    if not path.stat().st_size:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(b"location") < 0:
            return []
        return [_text(data, begin, end) for begin, end in _entries(data)]


def _entries(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield where the values of all `location` entries begin and end."""
    pending = [("model", 0, len(data), 0)]
    while pending:
        kind, begin, end, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise ValueError("its graphs are nested too deeply")
        fields = list(_read_fields(data, begin, end, _CHILDREN.get(kind)))
        if kind != "entry":
            pending += [(_CHILDREN[kind][f.number], f.begin, f.end, depth + 1) for f in fields]
            continue
        keys = [data[f.begin : f.end] for f in fields if f.number == _KEY]
        if keys[-1:] == [b"location"]:
            yield from ((f.begin, f.end) for f in fields if f.number == _VALUE)


def _read_fields(data: mmap.mmap, begin: int, end: int, numbers: Mapping[int, str] | None) -> Iterator[_Field]:
    """Yield the fields of a message that have bytes: those with these numbers, or all."""
    place = begin
    while place < end:
        tag, place = _read_varint(data, place, end)
        kind, number = tag & 7, tag >> 3
        if kind == _VARINT:
            _, place = _read_varint(data, place, end)
        elif kind in (_FIXED32, _FIXED64):
            place += 4 if kind == _FIXED32 else 8
        elif kind == _BYTES:
            size, place = _read_varint(data, place, end)
            if place + size > end:
                raise ValueError("it is truncated")
            if numbers is None or number in numbers:
                yield _Field(number, place, place + size)
            place += size
        else:  # groups, which ONNX does not use
            raise ValueError("it is not an ONNX file")
    if place != end:
        raise ValueError("it is truncated")


def _read_varint(data: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    """Return a number, and the place behind it."""
    value = 0
    for index in range(min(_VARINT_BYTES, end - place)):
        byte = data[place + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    raise ValueError("it is truncated")


def _text(data: mmap.mmap, begin: int, end: int) -> str:
    return data[begin:end].decode("utf-8", "backslashreplace")
