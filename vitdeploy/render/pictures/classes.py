"""The picture of a classifier's answer: the best classes with their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitdeploy.evidence.predictions import Guess
from vitdeploy.render.pictures.canvas import enlarge, name_class, to_plain
from vitdeploy.render.pictures.colours import colour_of_class
from vitdeploy.render.pictures.panel import PanelRow, draw_panel

if TYPE_CHECKING:
    from PIL.Image import Image


def draw_classes(picture: Image, top: Sequence[Guess]) -> Image:
    """Return a copy of a picture with the best classes, their probabilities in percent, and a bar for each."""
    image = enlarge(picture)
    bar = colour_of_class(1)
    rows = [
        PanelRow(name_class(guess.label, guess.index), f"{100 * guess.probability:.1f} %", bar, guess.probability)
        for guess in top
    ]
    draw_panel(image, rows)
    return image


def draw_lines(picture: Image, lines: Sequence[str]) -> Image:
    """Return a copy of a picture with an answer in words."""
    image = enlarge(picture)
    draw_panel(image, [PanelRow(to_plain(line)) for line in lines])
    return image
