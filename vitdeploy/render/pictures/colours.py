"""Colours that people with any kind of colour vision can tell apart, and a scale of even steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitdeploy.session import Array

Colour = tuple[int, int, int]

BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)

# Okabe & Ito 2008, "Color Universal Design". Their black is left out: it would be taken for shadow.
_ORANGE, _SKY, _GREEN, _YELLOW = (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)
_BLUE, _VERMILION, _PURPLE = (0, 114, 178), (213, 94, 0), (204, 121, 167)
_HUES: tuple[Colour, ...] = (_VERMILION, _SKY, _YELLOW, _GREEN, _PURPLE, _BLUE, _ORANGE)
"""In an order in which neighbours differ in lightness too."""
_TINTS = (0.0, 0.45, -0.4)  # a share of white, or of black if below 0, for classes beyond the seven

# Viridis at nine even steps (Smith & van der Walt 2015, matplotlib, CC0). Lightness and hue change evenly.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140),
        (40, 174, 128), (94, 201, 98), (173, 220, 48), (253, 231, 37),
    ],
    dtype=np.float64,
)  # fmt: skip


def colour_of_class(index: int) -> Colour:
    """Return the colour of a class: the same in every picture. After 21 classes they repeat."""
    tint, hue = divmod(index % (len(_HUES) * len(_TINTS)), len(_HUES))
    return _mix(_HUES[hue], _TINTS[tint])


def colours_of_classes(indices: Sequence[int]) -> dict[int, Colour]:
    """Return the colours of the classes in one picture, all different as long as there are enough.

    The first of two classes with the same colour keeps it, so list the important ones first.
    """
    free = [colour_of_class(number) for number in range(len(_HUES) * len(_TINTS))]
    chosen: dict[int, Colour] = {}
    clashing = []
    for index in indices:
        if colour_of_class(index) in free:
            chosen[index] = colour_of_class(index)
            free.remove(chosen[index])
        else:
            clashing.append(index)
    for index in clashing:
        chosen[index] = free.pop(0) if free else colour_of_class(index)
    return chosen


def text_on(colour: Colour) -> Colour:
    """Return black or white, whichever has more contrast on a colour (WCAG 2.2)."""
    light = relative_luminance(colour) + 0.05
    return BLACK if light / 0.05 > 1.05 / light else WHITE


def relative_luminance(colour: Colour) -> float:
    """Return the luminance of an sRGB colour, from 0 to 1 (WCAG 2.2)."""
    shares = np.array(colour) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def scale_colours(values: Array) -> Array:
    """Return the colours of values from 0 to 1: uint8 (…, 3). 0 is dark violet and 1 is light yellow."""
    steps = np.linspace(0, 1, 256)
    table = np.stack([np.interp(steps, np.linspace(0, 1, len(_VIRIDIS)), c) for c in _VIRIDIS.T], axis=1)
    colours: Array = np.rint(table).astype(np.uint8)[np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)]
    return colours


def _mix(colour: Colour, tint: float) -> Colour:
    end = 255 if tint > 0 else 0
    red, green, blue = (round(value + (end - value) * abs(tint)) for value in colour)
    return red, green, blue
