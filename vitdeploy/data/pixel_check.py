"""Compare vitdeploy's preprocessing with the model's own image processor, pixel by pixel.

Vitdeploy resizes with Pillow. Processors that resize tensors in torchvision round in another way: on images with the
statistics of photographs up to 23 % of the values differ by 1/255, and 0.5 % by more (lanczos in uint8, where the two
passes clip in another order). Another filter, a crop that is wrong by one pixel, or no antialiasing differs by more
than 1.8/255 in the mean, with more than half of the values beyond 1/255. The limits below lie between the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.data.geometry import place
from vitdeploy.data.picture import MAX_BYTE
from vitdeploy.data.preprocess import apply, as_image
from vitdeploy.data.synthetic import coloured_noise
from vitdeploy.evidence.pixels import PixelCheck
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_MEAN = 0.5
"""The most that values may differ in the mean: half a byte, the error of one rounding."""
MAX_BEYOND_ONE = 0.01
"""The largest share of values that may differ by more than one byte."""
MAX_FLAT = 0.05
"""The most bytes that values may differ on an image of one colour, where float32 is the only rounding."""

_SHAPES = ((0.6, 0.95), (0.95, 0.6), (1.25, 1.9), (1.9, 1.25), (0.37, 0.29))
"""Heights and widths of the images, as shares of the input: both orientations, smaller and larger than the input."""
_LARGER = 2  # the index of the one that is always larger than the input, so that the filter has to antialias
_LARGEST_INPUT = 640  # the other images are made for inputs up to this size: they take seconds otherwise
_COLOURS = ((13, 120, 250), (240, 30, 70))
_TILE = 256


class OwnProcessor(ABC):
    """The model's own preprocessing, as its library has it."""

    name: str

    @abstractmethod
    def apply(self, image: Image) -> Array:
        """Preprocess an RGB or grey image: float32 (channels, height, width), of any size.

        Raises:
            Exception: whatever the library raises, if it cannot.
        """

    def apply_at(self, image: Image, size: tuple[int, int]) -> Array | None:  # noqa: ARG002  not all can
        """Do the same, but resize to exactly this height and width; None if the processor does not do that."""
        return None

    def apply_padded(self, image: Image, size: tuple[int, int]) -> tuple[Array, Array | None] | None:  # noqa: ARG002
        """Preprocess an image and pad it to `size`. Return it with its pixel mask; None if it does not do that."""
        return None


@dataclass(frozen=True)
class _Difference:
    """Differences on one image in bytes, (channels, height, width).

    Attributes:
        values: the differences; None if there are none to look at.
        shrunk: both sides were asked for a smaller image than the processor gives.
        why: the reason why the two cannot be equal.
        failure: the reason why this image says nothing.
    """

    values: Array | None = None
    shrunk: bool = False
    why: str = ""
    failure: str = "it cannot be asked for the size that the input has"


def compare_pixels(own: OwnProcessor, preprocess: Preprocess) -> PixelCheck:
    """Run both on photograph-like images that are not square, and on images of one colour; compare all values."""
    images: list[str] = []
    differences: list[_Difference] = []
    failures: list[str] = []
    for image in _photographs(preprocess):
        difference = _try_to_compare(own, image, preprocess)
        if difference.why:
            return PixelCheck(processor=own.name, equal=False, why=difference.why)
        if difference.values is None:
            failures.append(difference.failure)
            continue
        images.append(f"{image.height}x{image.width}")
        differences.append(difference)
    if not differences:
        return PixelCheck(processor=own.name, equal=False, why=failures[0])
    return _judge(own, preprocess, differences, images)


def can_compare(own: OwnProcessor, preprocess: Preprocess) -> bool:
    """Return True if the processor gives one image with this number of channels."""
    try:
        pixels = own.apply(next(_photographs(preprocess)))
    except Exception:  # noqa: BLE001  `compare_pixels` reports it
        return False
    return pixels.ndim == 3 and pixels.shape[0] == preprocess.channels


def are_photographs_equal(own: OwnProcessor, preprocess: Preprocess) -> bool:
    """Compare images until one differs, to try many readings of a processor's config."""
    return all(_is_equal(_try_to_compare(own, image, preprocess)) for image in _photographs(preprocess))


def measure_first_image(own: OwnProcessor, preprocess: Preprocess) -> float:
    """Return the mean difference of the first image in bytes; infinity if its size differs."""
    difference = _try_to_compare(own, next(_photographs(preprocess)), preprocess)
    return float("inf") if difference.values is None else float(difference.values.mean())


def _is_equal(difference: _Difference) -> bool:
    """Return True unless the image differs. One that the processor cannot bring to the size says nothing."""
    return not difference.why and (difference.values is None or _is_rounding(difference.values))


def _is_rounding(values: Array) -> bool:
    return float(values.mean()) <= MAX_MEAN and float((values > 1 + MAX_FLAT).mean()) <= MAX_BEYOND_ONE


def _judge(own: OwnProcessor, preprocess: Preprocess, differences: list[_Difference], images: list[str]) -> PixelCheck:
    values = [d.values for d in differences if d.values is not None]
    mean = max(float(v.mean()) for v in values)
    beyond = max(float((v > 1 + MAX_FLAT).mean()) for v in values)
    flat = _compare_colours(own, preprocess)
    reasons = []
    different = not all(_is_rounding(v) for v in values)
    if flat > MAX_FLAT:
        reasons.append(f"an image of one colour differs by {flat:.3g}/255 (mean, std or the order of channels)")
    if different:
        reasons.append(f"values differ by {mean:.3g}/255 in the mean, {100 * beyond:.3g} % of them by more than 1/255")
    return PixelCheck(
        processor=own.name,
        equal=not reasons,
        why="; ".join(reasons),
        images=tuple(images),
        shrunk=sum(d.shrunk for d in differences),
        max_difference=max(float(v.max()) for v in values),
        mean_difference=mean,
        beyond_one_pct=100 * beyond,
        flat_difference=flat,
    )


def _try_to_compare(own: OwnProcessor, image: Image, preprocess: Preprocess) -> _Difference:
    try:
        return _compare(own, image, preprocess)
    except Exception as error:  # noqa: BLE001  processors of libraries have errors of their own
        reason = " ".join(str(error).split())[:200]
        return _Difference(failure=reason if reason.startswith("it ") else f"it fails on an image: {reason}")


def _compare(own: OwnProcessor, image: Image, preprocess: Preprocess) -> _Difference:
    """Compare one image. Its differences are None if the processor cannot make the size that the input has.

    Raises:
        Exception: whatever the processor raises.
    """
    theirs = own.apply(image)
    if theirs.ndim != 3 or theirs.shape[0] != preprocess.channels:
        return _Difference(why=f"it gives {_format(theirs.shape)}, not one image of {preprocess.channels} channels")
    if preprocess.resize == "letterbox":
        return _compare_letterbox(own, image, theirs, preprocess)
    if theirs.shape[1:] != preprocess.size:
        sizes = f"{_format(theirs.shape[1:])} from an image of {image.height}x{image.width}"
        return _Difference(why=f"it gives {sizes}, not {_format(preprocess.size)}")
    return _Difference(_in_bytes(apply(image, preprocess)[: preprocess.channels] - theirs, preprocess))


def _compare_letterbox(own: OwnProcessor, image: Image, theirs: Array, preprocess: Preprocess) -> _Difference:
    """Compare the whole input where the processor pads too, else the image in it."""
    ours, channels = apply(image, preprocess), preprocess.channels
    fits = all(side <= size for side, size in zip(theirs.shape[1:], preprocess.size, strict=True))
    if not fits:
        area = place(image.height, image.width, preprocess)
        shrunk = own.apply_at(image, (area.height, area.width))
        if shrunk is None or shrunk.shape[1:] != (area.height, area.width):
            return _Difference()
        return _Difference(_in_bytes(_find_image(ours, image, preprocess) - shrunk, preprocess), shrunk=True)
    if theirs.shape[1:] == preprocess.size:
        return _Difference(_in_bytes(ours[:channels] - theirs, preprocess))
    padded = own.apply_padded(image, preprocess.size)
    if padded is not None and padded[0].shape[1:] == preprocess.size:
        pixels, mask = padded
        if preprocess.mask and (mask is None or not np.array_equal(ours[channels] > 0, mask > 0)):
            return _Difference(why="its mask of the padding is another one")
        return _Difference(_in_bytes(ours[:channels] - pixels, preprocess))
    part = _find_image(ours, image, preprocess)
    if part.shape != theirs.shape:
        sizes = f"{_format(theirs.shape[1:])} from an image of {image.height}x{image.width}"
        return _Difference(why=f"it gives {sizes}, not {_format(part.shape[1:])}")
    return _Difference(_in_bytes(part - theirs, preprocess))


def _compare_colours(own: OwnProcessor, preprocess: Preprocess) -> float:
    """Return the largest difference in the middle of images of one colour."""
    height, width = _scale_sides(preprocess, _SHAPES[0])
    largest = 0.0
    for colour in _COLOURS:
        image = _as_input(np.full((height, width, 3), colour, np.uint8), preprocess)
        ours, theirs = _find_image(apply(image, preprocess), image, preprocess), own.apply(image)
        top, left = _find_corner(image, preprocess) if theirs.shape[1:] == preprocess.size else (0, 0)
        rows, columns = ours.shape[1:] if theirs.shape[1:] == preprocess.size else theirs.shape[1:]
        middle = ours[:, ours.shape[1] // 2, ours.shape[2] // 2] - theirs[:, top + rows // 2, left + columns // 2]
        largest = max(largest, float(_in_bytes(middle[:, None, None], preprocess).max()))
    return largest


def _find_corner(image: Image, preprocess: Preprocess) -> tuple[int, int]:
    """Return top and left of the image in the input."""
    area = place(image.height, image.width, preprocess)
    return max(-area.top, 0), max(-area.left, 0)


def _find_image(planes: Array, image: Image, preprocess: Preprocess) -> Array:
    """Return the part of the input that shows the image: (channels, height, width)."""
    area, (top, left) = place(image.height, image.width, preprocess), _find_corner(image, preprocess)
    return planes[: preprocess.channels, top : top + area.height, left : left + area.width]


def _in_bytes(difference: Array, preprocess: Preprocess) -> Array:
    """Undo std and the scale to [0, 1]."""
    scaled: Array = np.abs(difference) * np.asarray(preprocess.std, np.float32)[:, None, None] * MAX_BYTE
    return scaled


def _photographs(preprocess: Preprocess) -> Iterator[Image]:
    """Make images with the statistics of photographs. One tile is repeated: it has no seams, and saves time."""
    tile = coloured_noise(0, 0, (_TILE, _TILE))
    for index, shape in enumerate(_SHAPES):
        height, width = _scale_sides(preprocess, shape, None if index == _LARGER else _LARGEST_INPUT)
        repeated = np.pad(tile, ((0, max(0, height - _TILE)), (0, max(0, width - _TILE)), (0, 0)), mode="wrap")
        yield _as_input(repeated[:height, :width], preprocess)


def _scale_sides(
    preprocess: Preprocess, shape: tuple[float, float], largest: int | None = _LARGEST_INPUT
) -> tuple[int, int]:
    """Return an odd height and width."""
    pairs = zip(preprocess.size, shape, strict=True)
    height, width = (max(2, round(share * min(side, largest or side))) | 1 for side, share in pairs)
    return height, width


def _as_input(pixels: Array, preprocess: Preprocess) -> Image:
    image = as_image(np.ascontiguousarray(pixels))
    return image if preprocess.channels > 1 else image.convert("L")


def _format(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
