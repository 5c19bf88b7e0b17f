"""The image input of a model: its size, its patch grid, and default preprocessing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.data.pixel_check import OwnProcessor
from vitdeploy.errors import SourceError
from vitdeploy.recipe import Preprocess, SizeRange, format_size
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image


class TransformProcessor(OwnProcessor):
    """The evaluation transform of timm or torchvision.

    Args:
        name: the transform and its library.
        transform: from a Pillow image to a tensor (channels, height, width).
        at: the same, resized to the given height and width; None if there is no such transform.
    """

    def __init__(
        self,
        name: str,
        transform: Callable[[Image], Any],
        at: Callable[[Image, tuple[int, int]], Any] | None = None,
    ) -> None:
        self.name = name
        self._transform = transform
        self._at = at

    def apply(self, image: Image) -> Array:
        """Return the pixels of one image."""
        return np.asarray(self._transform(image), dtype=np.float32)

    def apply_at(self, image: Image, size: tuple[int, int]) -> Array | None:
        """Return the pixels of an image that is resized to `size`."""
        return None if self._at is None else np.asarray(self._at(image, size), dtype=np.float32)


def check_patch(model: str, size: tuple[int, int], patch: Any, sizes: SizeRange | None = None) -> None:
    """Raise an error if an image side is not a multiple of the patch (one number, or height and width).

    `sizes` is the range that the size belongs to.
    """
    patches = tuple(patch) if isinstance(patch, (tuple, list)) else (patch, patch)
    if len(patches) != 2 or not all(isinstance(p, int) and p > 0 for p in patches):
        return  # without a known patch grid there is nothing to check
    if all(side % p == 0 for side, p in zip(size, patches, strict=True)):
        return
    below = [max(p, side // p * p) for side, p in zip(size, patches, strict=True)]
    above = [-(-side // p) * p for side, p in zip(size, patches, strict=True)]
    possible = " or ".join(dict.fromkeys(f"{h}x{w}" for h, w in (below, above)))
    raise SourceError(
        f"{model}: image size {format_size(size)} is not a multiple of the patch size {patches[0]}x{patches[1]}",
        fix=f"Use --image-size {possible}." if sizes is None else f"Use {possible} instead, in {sizes}.",
    )


def default_preprocess(size: tuple[int, int], channels: int) -> Preprocess:
    """Return preprocessing with ImageNet's statistics; for one channel, to the range [-1, 1]."""
    if channels == 1:
        return Preprocess(size=size, mean=(0.5,), std=(0.5,), channels=1)
    return Preprocess(size=size)


def resolve_size(
    model: object, sides: tuple[int | None, int | None], requested: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the image size for a graph with these `sides` (height and width; None is dynamic).

    Raises:
        SourceError: the size is dynamic and none is requested, or it is fixed and another one is requested.
    """
    height, width = (side or other for side, other in zip(sides, requested or (0, 0), strict=True))
    if not (height and width):
        raise SourceError(f"{model}: its image size is dynamic", fix="Give --image-size HxW.")
    if requested is not None and (height, width) != requested:
        raise SourceError(
            f"{model} takes images of {height}x{width}, not {requested[0]}x{requested[1]}",
            fix="Leave out --image-size.",
        )
    return height, width


def check_range(model: object, sides: tuple[int | None, int | None], sizes: SizeRange | None) -> None:
    """Refuse a range of image sizes for a graph with these `sides` (height and width; None is dynamic).

    Raises:
        SourceError: a side is fixed, and the range has several sizes for it.
    """
    if sizes is None or all(side in (None, own) for side, own in zip(sides, sizes.fixed_sides, strict=True)):
        return
    height, width = (side or name for side, name in zip(sides, ("H", "W"), strict=True))
    raise SourceError(
        f"{model} takes images of {height}x{width} only, so it cannot take {sizes}",
        fix="Export it with dynamic height and width, or give one size with --image-size HxW.",
    )


def read_trained_size(path: Path, positions: int, patch: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the images that a position embedding is for. A square is assumed.

    Args:
        path: the checkpoint.
        positions: the number of patches that have a position.
        patch: height and width of a patch.

    Raises:
        SourceError: no square has so many patches.
    """
    side = math.isqrt(max(positions, 0))
    if side * side != positions or side == 0:
        raise SourceError(
            f"the position embedding in {path} is for {positions} patches, which are no square",
            fix="Give the size that it was trained on with --image-size HxW.",
        )
    return side * patch[0], side * patch[1]
