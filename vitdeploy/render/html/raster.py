"""Images and maps as PNG or JPEG inside the page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.render.html.markup import Markup, element
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL import Image

_SHOWN = 192  # pixels: twice what a cell of the page is wide
_TINY = 96  # up to here an image is kept as it is, and shown in its own pixels

SEQUENTIAL = (
    (12, 13, 38),
    (74, 22, 104),
    (143, 41, 112),
    (209, 68, 83),
    (246, 132, 61),
    (252, 206, 98),
    (252, 253, 216),
)
"""From nothing to most, brighter all the way: seven points near matplotlib's "inferno" (CC0)."""

LESS, MORE = (67, 133, 208), (214, 78, 66)
"""Of a difference: blue and red, which colour-blind eyes tell apart, and which stand out on light and on dark."""


def image(pixels: Array, label: str) -> Markup:
    """A uint8 (height, width, 1 or 3) image, made small."""
    from PIL import Image

    array = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    picture = Image.fromarray(np.ascontiguousarray(array))
    if max(picture.size) <= _TINY:
        return _embedded(picture, "PNG", label, pixelated=True)
    picture.thumbnail((_SHOWN, _SHOWN), Image.Resampling.LANCZOS)
    return _embedded(picture, "JPEG", label, pixelated=False)


def heat(values: Array, most: float, label: str) -> Markup:
    """A map (rows, columns): one pixel a cell, its colour from `SEQUENTIAL` between 0 and `most`."""
    from PIL import Image

    at = np.clip(np.asarray(values, np.float64) / (most or 1.0), 0, 1) * (len(SEQUENTIAL) - 1)
    channels = [np.interp(at, range(len(SEQUENTIAL)), channel) for channel in zip(*SEQUENTIAL, strict=True)]
    colours = np.stack(channels, axis=-1).round().astype(np.uint8)
    return _embedded(Image.fromarray(colours), "PNG", label, pixelated=True)


def difference(values: Array, reach: float, label: str) -> Markup:
    """A map of differences: blue where there is less, red where more, and nothing at all where there is none."""
    from PIL import Image

    share = np.clip(np.asarray(values, np.float64) / (reach or 1.0), -1, 1)[..., None]
    colours = np.where(share < 0, LESS, MORE)
    opaque = (255 * np.abs(share)).round()
    pixels = np.concatenate([colours, opaque], axis=-1).astype(np.uint8)
    return _embedded(Image.fromarray(pixels, "RGBA"), "PNG", label, pixelated=True)


def ramp(low: str, high: str) -> Markup:
    """The legend of `heat`."""
    return _legend(", ".join(f"rgb({r} {g} {b})" for r, g, b in SEQUENTIAL), low, high)


def difference_ramp(low: str, high: str) -> Markup:
    """The legend of `difference`."""
    (r, g, b), (red, green, blue) = LESS, MORE
    less, more = f"{r} {g} {b}", f"{red} {green} {blue}"
    return _legend(f"rgb({less}), rgb({less} / 0) 50%, rgb({more} / 0) 50%, rgb({more})", low, high)


def _legend(colours: str, low: str, high: str) -> Markup:
    return element(
        "span", low, element("i", style=f"background-image:linear-gradient(90deg, {colours})"), high, class_="ramp"
    )


def _embedded(picture: Image.Image, form: str, label: str, *, pixelated: bool) -> Markup:
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
