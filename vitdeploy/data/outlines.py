"""Masks of objects in the forms of COCO: polygons, and run lengths, plain or compressed.

Run lengths count the pixels that are outside, inside, outside, … of the object, column by column from the top left.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vitdeploy.errors import DataError
from vitdeploy.session import Array

_MIN_NUMBERS = 6  # three points
_FIRST, _LETTER_BITS = 48, 5  # a letter is 48 and more, and has five bits of a number
_MORE, _SIGN, _DIGITS = 0x20, 0x10, 0x1F
_MAX_LETTERS = 8  # of a number: 40 bits


class RunLengths(NamedTuple):
    """Height, width, and the run lengths of a mask."""

    height: int
    width: int
    counts: tuple[int, ...]


Polygons = tuple[tuple[float, ...], ...]
"""The parts of an object: x and y of each corner, in pixels."""

Outline = Polygons | RunLengths


def parse_outline(value: Any) -> Outline:
    """Read a "segmentation" of COCO. Parts of one or two points, which have no area, are left out beside others.

    Raises:
        ValueError: it is in none of COCO's forms; the message says why.
    """
    if isinstance(value, Mapping):
        return _parse_run_lengths(value)
    if not isinstance(value, list) or not value:
        raise ValueError("it has neither polygons nor run lengths")
    parts = [tuple(float(number) for number in part) for part in value]
    polygons = tuple(part for part in parts if len(part) >= _MIN_NUMBERS)
    if not polygons or any(len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon needs three points or more, x and y of each")
    if not np.isfinite([number for polygon in polygons for number in polygon]).all():
        raise ValueError("a polygon has numbers that are not finite")
    return polygons


def draw_outline(outline: Outline, size: tuple[int, int]) -> Array:
    """Return the mask of an object in an image of `size`, (height, width): bool.

    Polygons are filled as COCO's own evaluation does.

    Raises:
        DataError: pycocotools is not installed.
        ValueError: the outline is that of an image of another size; the message says why.
    """
    height, width = size
    if isinstance(outline, RunLengths):
        if (outline.height, outline.width) != size:
            raise ValueError(f"it is {outline.height}x{outline.width}, but its image is {height}x{width}")
        return _fill(outline)
    for x, y in itertools.chain.from_iterable(zip(p[::2], p[1::2], strict=True) for p in outline):
        if not (-width <= x <= 2 * width and -height <= y <= 2 * height):  # COCO's code walks there pixel by pixel
            raise ValueError(f"its point {x:g},{y:g} is far outside of its image, which is {height}x{width}")
    codec = _load_codec()
    merged: bytes = codec.merge(codec.frPyObjects([list(polygon) for polygon in outline], height, width))["counts"]
    return _fill(RunLengths(height, width, _decompress(merged.decode("ascii"))))


def compress(mask: Array) -> bytes:
    """Return the compressed run lengths of a mask, bool (height, width).

    Raises:
        DataError: pycocotools is not installed.
    """
    counts: bytes = _load_codec().encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts


def decompress(counts: bytes, size: tuple[int, int]) -> Array:
    """Return the mask with these compressed run lengths, bool (height, width).

    Raises:
        ValueError: they are damaged.
    """
    return _fill(RunLengths(*size, _decompress(counts.decode("ascii"))))


def _fill(runs: RunLengths) -> Array:
    inside = np.arange(len(runs.counts)) % 2 == 1
    mask: Array = np.repeat(inside, runs.counts).reshape(runs.width, runs.height).T
    return mask


def _load_codec() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise DataError(
            "masks of objects need pycocotools, which is not installed", fix="pip install 'vitdeploy[detection]'."
        ) from None
    return mask


def _parse_run_lengths(value: Mapping[str, Any]) -> RunLengths:
    height, width = (int(side) for side in value["size"])
    counts = value["counts"]
    numbers = _decompress(counts) if isinstance(counts, str) else tuple(int(count) for count in counts)
    if height < 1 or width < 1 or min(numbers, default=0) < 0 or sum(numbers) != height * width:
        raise ValueError(f"its run lengths do not add up to {height}x{width} pixels")
    return RunLengths(height, width, numbers)


def _decompress(text: str) -> tuple[int, ...]:
    """Return the numbers of compressed run lengths.

    Each is written in letters of five bits, lowest first; from the fourth on as the difference from the one before the
    last (rleFrString in maskApi.c of pycocotools). That code trusts its input, so it is not called.
    """
    counts: list[int] = []
    number = letters = 0
    for character in text:
        code = ord(character) - _FIRST
        if not 0 <= code < 2 * _MORE or letters == _MAX_LETTERS:
            raise ValueError("its compressed run lengths are damaged")
        number |= (code & _DIGITS) << (_LETTER_BITS * letters)
        letters += 1
        if code & _MORE:
            continue
        if code & _SIGN:
            number -= 1 << (_LETTER_BITS * letters)
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = letters = 0
    if letters:
        raise ValueError("its compressed run lengths are damaged")
    return tuple(counts)
