"""Sizes and places: what resizing, cropping and padding do to the sides of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # packages for servers carry this file, without vitdeploy
    from vitdeploy.recipe import Preprocess

_FLOOR_SLACK = 1e-6  # 224 / (224 / 232) is 231.99999999999997, and means 232


@dataclass(frozen=True)
class ImageArea:
    """An image after resizing, and the place of the model's input in it.

    Attributes:
        height, width: the sides of the resized image.
        top, left: the corner of the input in the resized image. Below 0 where the image is padded.
    """

    height: int
    width: int
    top: int
    left: int


def place(height: int, width: int, preprocess: Preprocess) -> ImageArea:
    """Return how an upright image of these sides is resized, and which part of it becomes the input."""
    resized = _resized_size(height, width, preprocess)
    top, left = (_corner(side, size, preprocess) for side, size in zip(resized, preprocess.size, strict=True))
    return ImageArea(*resized, top, left)


def visible_area(height: int, width: int, preprocess: Preprocess) -> tuple[float, float, float, float]:
    """Return the area that the model's input covers: top, left, bottom and right in pixels of the upright image.

    Where the image is padded, the area is larger than the image: its top or left is below 0, its bottom or right is
    beyond the last pixel.
    """
    area = place(height, width, preprocess)
    rows, columns = preprocess.size
    y_scale, x_scale = height / area.height, width / area.width
    top, left = area.top * y_scale, area.left * x_scale
    return top, left, top + rows * y_scale, left + columns * x_scale


def cut_to_view(
    height: int, width: int, preprocess: Preprocess
) -> tuple[slice, slice, tuple[int, int, int, int] | None]:
    """Return the rows and columns of an upright image that the model sees, and the place of the input in them.

    The place (top, left, bottom, right) is None if the input covers these rows and columns; else the input is larger,
    because the image is padded.
    """
    top, left, bottom, right = (round(edge) for edge in visible_area(height, width, preprocess))
    first_row, first_column = max(top, 0), max(left, 0)
    padded = top < 0 or left < 0 or bottom > height or right > width
    inside = (top - first_row, left - first_column, bottom - first_row, right - first_column)
    return slice(first_row, bottom), slice(first_column, right), inside if padded else None


def is_padded(height: int, width: int, preprocess: Preprocess) -> bool:
    """Return whether an upright image of these sides is padded on any side."""
    area = place(height, width, preprocess)
    return area.height < preprocess.size[0] or area.width < preprocess.size[1]


def size_before_crop(preprocess: Preprocess) -> tuple[int, int]:
    """Return height and width before the centre is cropped, or the image is padded: size / crop_pct."""
    if preprocess.resize_to is not None:
        return preprocess.resize_to
    height, width = (max(1, int(side / preprocess.crop_pct + _FLOOR_SLACK)) for side in preprocess.size)
    return height, width


def _corner(side: int, size: int, preprocess: Preprocess) -> int:
    """Return where the input starts on one side of the resized image."""
    if side < size:
        return -((size - side) // 2) if preprocess.padding == "centre" else 0
    return (side - size) // 2 if preprocess.crop_rounding == "down" else round((side - size) / 2)


def _resized_size(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    if preprocess.resize == "letterbox":
        return _fit(height, width, preprocess)
    target = size_before_crop(preprocess)
    return _cover(height, width, target) if preprocess.resize == "shortest" else target


def _cover(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    """Scale height and width, with their ratio kept, until they just cover `target`.

    For a square target the longer side is rounded down, as in torchvision's Resize. Otherwise it is rounded to the
    nearest, as in timm.
    """
    if target[0] == target[1]:
        side = target[0]
        return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    ratio = min(height / target[0], width / target[1])
    return max(target[0], round(height / ratio)), max(target[1], round(width / ratio))


def _fit(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """Scale height and width, with their ratio kept, to the edges that are asked for; at most to `size`."""
    limit = size_before_crop(preprocess)
    if preprocess.shortest_edge is not None or preprocess.longest_edge is not None:
        edges = _scale_to_edges(height, width, preprocess.shortest_edge, preprocess.longest_edge)
        rounded = _round_sides(edges, preprocess)
        if rounded[0] <= limit[0] and rounded[1] <= limit[1]:
            return rounded
    elif not preprocess.enlarge and height <= limit[0] and width <= limit[1]:
        return _at_most(_round_sides((height, width), preprocess), limit, preprocess)
    if preprocess.size_rounding == "even":  # timm divides by the ratio; the last digit of the quotient can differ
        ratio = max(height / limit[0], width / limit[1])
        sides = height / ratio, width / ratio
    else:
        scale = min(limit[0] / height, limit[1] / width)
        sides = height * scale, width * scale
    return _at_most(_round_sides(sides, preprocess), limit, preprocess)


def _scale_to_edges(height: int, width: int, shortest: int | None, longest: int | None) -> tuple[float, float]:
    """Scale the sides so that the shorter one becomes `shortest`, or the longer one `longest` if that is smaller.

    The order of the operations is that of `get_size_with_aspect_ratio` in transformers: sides are rounded later, and
    the last digit of a quotient decides about a pixel.
    """
    short, long = min(height, width), max(height, width)
    if shortest is None:
        scale = (longest or long) / long
        return height * scale, width * scale
    edge, factor = shortest, float(shortest)
    if longest is not None and long / short * shortest > longest:
        factor = longest * short / long
        edge = round(factor)
    if short == edge:
        return height, width
    return (factor * height / width, edge) if width < height else (edge, factor * width / height)


def _round_sides(sides: tuple[float, float], preprocess: Preprocess) -> tuple[int, int]:
    height, width = (_round(side, preprocess.size_divisor, preprocess.size_rounding) for side in sides)
    return height, width


def _round(side: float, divisor: int, rounding: str) -> int:
    """Round a side to a multiple of `divisor`, at least one of them."""
    if rounding == "down":
        count = int(side) // divisor
    elif rounding == "up":
        count = -(-int(side) // divisor)
    elif rounding == "nearest":
        count = int(side / divisor + 0.5)
    else:
        count = round(side / divisor)
    return max(1, count) * divisor


def _at_most(sides: tuple[int, int], limit: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    divisor = preprocess.size_divisor
    height, width = (min(side, max(most // divisor, 1) * divisor) for side, most in zip(sides, limit, strict=True))
    return height, width
