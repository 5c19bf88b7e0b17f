"""Resize maps as `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` does."""

from __future__ import annotations

import numpy as np

from vitdeploy.session import Array

_STRIP_NUMBERS = 1 << 22  # 16 MiB of scores at a time, for any size of the mask and any number of classes


Box = tuple[float, float, float, float]
"""Top, left, bottom and right."""


def find_picture(view: Box, picture: tuple[int, int]) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """Return the size of the model's view in pixels of the picture, and where the picture is in it.

    Args:
        view: the model's input in pixels of the picture. It is larger than the picture where that was padded.
        picture: height and width.
    """
    top, left, bottom, right = view
    size = max(1, round(bottom - top)), max(1, round(right - left))
    rows = _find_side(top, size[0], picture[0])
    return size, (rows, _find_side(left, size[1], picture[1]))


def _find_side(start: float, size: int, side: int) -> slice:
    first = min(max(0, round(-start)), size - 1)
    return slice(first, max(first + 1, min(size, round(side - start))))


def resize_bilinear(maps: Array, size: tuple[int, int]) -> Array:
    """Resize maps (..., h, w) to `size` (height, width); float32."""
    wide = _resize_columns(maps.astype(np.float32, copy=False), size[1], slice(None))
    return _resize_rows(wide, size[0], slice(None))


def find_positive(scores: Array, size: tuple[int, int]) -> Array:
    """Resize `scores` (h, w) to `size`, and return where they are above 0: bool (height, width).

    Only pixels beside a score above 0 are computed: most masks are small.
    """
    positive = np.zeros(size, dtype=bool)
    places = [np.flatnonzero((scores > 0).any(axis=axis)) for axis in (1, 0)]
    if not len(places[0]):
        return positive
    rows, columns = (
        _find_reach(place, source, target) for place, source, target in zip(places, scores.shape, size, strict=True)
    )
    wide = _resize_columns(scores.astype(np.float32, copy=False), size[1], columns)
    positive[rows, columns] = _resize_rows(wide, size[0], rows) > 0
    return positive


def _find_reach(places: Array, source: int, target: int) -> slice:
    """Return the target positions that read a source position among `places` or between them."""
    low, high, _ = _taps(source, target)
    touched = np.flatnonzero((high >= places[0]) & (low <= places[-1]))
    return slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0, 0)


def find_best_classes(scores: Array, size: tuple[int, int]) -> Array:
    """Resize `scores` (classes, h, w) to `size`, and return the best class of each pixel: int64 (height, width).

    Scores are resized and not classes, so that borders can run between the pixels of the coarse map, as in training.
    """
    height, width = size
    if scores.shape[1:] == size:
        best: Array = scores.argmax(axis=0)
        return best
    wide = _resize_columns(scores.astype(np.float32, copy=False), width, slice(None))
    classes = np.empty(size, dtype=np.int64)
    strip = max(1, _STRIP_NUMBERS // (len(scores) * width))
    for top in range(0, height, strip):
        bottom = min(top + strip, height)
        classes[top:bottom] = _resize_rows(wide, height, slice(top, bottom)).argmax(axis=0)
    return classes


def _resize_columns(maps: Array, width: int, part: slice) -> Array:
    """Return a part of the columns of the maps resized to `width`."""
    if maps.shape[-1] == width:
        return maps[..., part]
    low, high, share = (taps[part] for taps in _taps(maps.shape[-1], width))
    left, right = maps[..., low], maps[..., high]
    resized: Array = left + (right - left) * share
    return resized


def _resize_rows(maps: Array, height: int, part: slice) -> Array:
    """Return a part of the rows of the maps resized to `height`."""
    if maps.shape[-2] == height:
        return maps[..., part, :]
    low, high, share = (taps[part] for taps in _taps(maps.shape[-2], height))
    upper, lower = maps[..., low, :], maps[..., high, :]
    resized: Array = upper + (lower - upper) * share[:, None]
    return resized


def _taps(source: int, target: int) -> tuple[Array, Array, Array]:
    """Return the two source positions around each target position, and the share of the second."""
    centres = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = np.floor(centres).astype(np.int64)
    return low, np.minimum(low + 1, source - 1), (centres - low).astype(np.float32)
