"""Maps at another size, as `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` computes them."""

from __future__ import annotations

import numpy as np

from vitdeploy.session import Array

_STRIP_NUMBERS = 1 << 22  # 16 MiB of scores at a time, however large the mask and however many the classes


def bilinear(maps: Array, size: tuple[int, int]) -> Array:
    """`maps` (..., h, w) at `size` (height, width), float32."""
    return _rows(_columns(maps.astype(np.float32, copy=False), size[1]), size[0], 0, size[0])


def best_classes(scores: Array, size: tuple[int, int]) -> Array:
    """The best class of each pixel after enlarging `scores` (classes, h, w) to `size`; int64 (height, width).

    Scores are enlarged, not classes: borders then run between the pixels of the coarse map, as in training.
    """
    height, width = size
    if scores.shape[1:] == size:
        best: Array = scores.argmax(axis=0)
        return best
    wide = _columns(scores.astype(np.float32, copy=False), width)
    found = np.empty(size, dtype=np.int64)
    strip = max(1, _STRIP_NUMBERS // (len(scores) * width))
    for top in range(0, height, strip):
        bottom = min(top + strip, height)
        found[top:bottom] = _rows(wide, height, top, bottom).argmax(axis=0)
    return found


def _columns(maps: Array, width: int) -> Array:
    if maps.shape[-1] == width:
        return maps
    low, high, share = _taps(maps.shape[-1], width)
    left, right = maps[..., low], maps[..., high]
    widened: Array = left + (right - left) * share
    return widened


def _rows(maps: Array, height: int, top: int, bottom: int) -> Array:
    """Rows `top` to `bottom` of the maps at `height`."""
    if maps.shape[-2] == height:
        return maps[..., top:bottom, :]
    low, high, share = (taps[top:bottom] for taps in _taps(maps.shape[-2], height))
    upper, lower = maps[..., low, :], maps[..., high, :]
    heightened: Array = upper + (lower - upper) * share[:, None]
    return heightened


def _taps(source: int, target: int) -> tuple[Array, Array, Array]:
    """The two source positions around each target position, and the share of the second."""
    centres = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = np.floor(centres).astype(np.int64)
    return low, np.minimum(low + 1, source - 1), (centres - low).astype(np.float32)
