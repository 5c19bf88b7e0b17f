"""Images and maps, embedded in the page as PNG or JPEG."""

from __future__ import annotations

import base64
import colorsys
import io
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.render.html.markup import Markup, element
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL import Image

_SHOWN = 192  # pixels: twice the width of a cell of the page
_TINY = 96  # pixels: up to this size an image is not scaled, and the browser shows its pixels

_LEAST_CELL = 6  # pixels of a patch: an outline and four pixels inside
_DARK = 0.2  # of the brightness of a patch that is dropped
_GOLDEN = 0.618034  # of the circle of hues: the golden ratio

SEQUENTIAL = (
    (12, 13, 38),
    (74, 22, 104),
    (143, 41, 112),
    (209, 68, 83),
    (246, 132, 61),
    (252, 206, 98),
    (252, 253, 216),
)
"""From 0 to the largest value, ever brighter: seven points near matplotlib's "inferno" (CC0)."""

LESS, MORE = (67, 133, 208), (214, 78, 66)
"""Blue for a negative and red for a positive difference. Colour-blind eyes can tell them apart, on light and dark."""


def image(pixels: Array, label: str) -> Markup:
    """Embed a uint8 image (height, width, 1 or 3), scaled down to the size it is shown in."""
    from PIL import Image

    array = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    picture = Image.fromarray(np.ascontiguousarray(array))
    if max(picture.size) <= _TINY:
        return _embed(picture, "PNG", label, pixelated=True)
    picture.thumbnail((_SHOWN, _SHOWN), Image.Resampling.LANCZOS)
    return _embed(picture, "JPEG", label, pixelated=False)


def patches(pixels: Array, groups: Array, label: str) -> Markup:
    """Embed a uint8 image (height, width, 1 or 3) with its patches (rows, columns) by the number of their group.

    Patches of a group are drawn in their mean colour with an outline of the group's own; a patch alone as it is; a
    patch of group -1 dark.
    """
    from PIL import Image

    rows, columns = groups.shape
    side = max(_LEAST_CELL, -(-_SHOWN // max(rows, columns)))
    flat = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
    scaled = Image.fromarray(np.ascontiguousarray(flat)).resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    drawn = np.asarray(scaled, np.float64).copy()
    numbers = np.kron(groups, np.ones((side, side), np.int64))
    padded = np.pad(numbers, 1, constant_values=-2)
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    outline = np.any([other != numbers for other in neighbours], axis=0)
    for number, count in zip(*np.unique(groups, return_counts=True), strict=True):
        inside = numbers == number
        if number < 0:
            drawn[inside] *= _DARK
        elif count > 1:
            drawn[inside] = drawn[inside].mean(axis=0)
            drawn[inside & outline] = _number_colour(int(number))
    return _embed(Image.fromarray(drawn.round().astype(np.uint8)), "PNG", label, pixelated=False)


def _number_colour(number: int) -> tuple[float, ...]:
    """Return a bright colour for a number, red, green and blue from 0 to 255; numbers in a row differ most."""
    return tuple(255 * channel for channel in colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.85, 1.0))


def heat(values: Array, most: float, label: str) -> Markup:
    """Embed a map (rows, columns) with one pixel a cell, coloured by `SEQUENTIAL` from 0 to `most`."""
    from PIL import Image

    at = np.clip(np.asarray(values, np.float64) / (most or 1.0), 0, 1) * (len(SEQUENTIAL) - 1)
    channels = [np.interp(at, range(len(SEQUENTIAL)), channel) for channel in zip(*SEQUENTIAL, strict=True)]
    colours = np.stack(channels, axis=-1).round().astype(np.uint8)
    return _embed(Image.fromarray(colours), "PNG", label, pixelated=True)


def difference(values: Array, reach: float, label: str) -> Markup:
    """Embed a map of differences: blue below 0, red above 0, transparent at 0, with full colour at `reach`."""
    from PIL import Image

    share = np.clip(np.asarray(values, np.float64) / (reach or 1.0), -1, 1)[..., None]
    colours = np.where(share < 0, LESS, MORE)
    opaque = (255 * np.abs(share)).round()
    pixels = np.concatenate([colours, opaque], axis=-1).astype(np.uint8)
    return _embed(Image.fromarray(pixels, "RGBA"), "PNG", label, pixelated=True)


def ramp(low: str, high: str) -> Markup:
    """Draw the legend of `heat`."""
    return _legend(", ".join(f"rgb({r} {g} {b})" for r, g, b in SEQUENTIAL), low, high)


def difference_ramp(low: str, high: str) -> Markup:
    """Draw the legend of `difference`."""
    (r, g, b), (red, green, blue) = LESS, MORE
    less, more = f"{r} {g} {b}", f"{red} {green} {blue}"
    return _legend(f"rgb({less}), rgb({less} / 0) 50%, rgb({more} / 0) 50%, rgb({more})", low, high)


def _legend(colours: str, low: str, high: str) -> Markup:
    return element(
        "span", low, element("i", style=f"background-image:linear-gradient(90deg, {colours})"), high, class_="ramp"
    )


def _embed(picture: Image.Image, form: str, label: str, *, pixelated: bool) -> Markup:
    file = io.BytesIO()
    picture.save(file, form, optimize=True, quality=85)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    width, height = picture.size
    return Markup(
        element(
            "img", src=f"data:image/{form.lower()};base64,{data}", alt=label, width=width, height=height,
            class_="pixels" if pixelated else None,
        ).removesuffix("</img>")
    )  # fmt: skip
