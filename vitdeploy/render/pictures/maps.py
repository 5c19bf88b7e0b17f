"""Pictures of answers for each pixel: coloured regions with a legend, and depth with a scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.evidence.predictions import Depths, Region
from vitdeploy.render.pictures.canvas import enlarge, enlargement, line_width, name_class
from vitdeploy.render.pictures.colours import WHITE, Colour, colours_of_classes, scale_colours
from vitdeploy.render.pictures.panel import PanelRow, draw_panel
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image

_OPACITY = 0.6  # of a region's colour; the rest is the picture in grey
_UNSEEN = 0.5  # the brightness of what the model did not see
_BACKGROUND = "background"
_STEPS = 64  # of the scale of a depth map


def draw_regions(picture: Image, classes: Array, corner: tuple[int, int], regions: Sequence[Region]) -> Image:
    """Return a grey copy of a picture with its regions in colour, white borders between them, and a legend.

    A class that is called background stays grey.

    Args:
        picture: upright.
        classes: the class of each pixel that the model saw, (h, w).
        corner: row and column of the first of them.
        regions: the classes for the legend, largest first.
    """
    from PIL import Image

    present = [region.index for region in regions]
    colours = colours_of_classes([*present, *(int(i) for i in np.unique(classes) if i not in present)])
    background = [region.index for region in regions if region.label.strip("_").lower() == _BACKGROUND]
    image, factor = enlarge(picture), enlargement(picture.size)
    canvas = dim_unseen(image, classes.shape, corner, factor)
    seen = place_map(classes.shape, corner, factor)
    table = np.zeros((1 + max(colours), 3), dtype=np.uint8)
    table[list(colours)] = list(colours.values())
    large = classes.repeat(factor, axis=0).repeat(factor, axis=1)
    grey = image.crop(seen).convert("L").convert("RGB")
    mixed = Image.blend(grey, Image.fromarray(table[large]), _OPACITY)
    mixed.paste(grey, mask=Image.fromarray(np.isin(large, background)))
    mixed.paste(WHITE, mask=Image.fromarray(find_borders(large, max(1, line_width(image) // 2))))
    canvas.paste(mixed, seen[:2])
    rows = [
        PanelRow(
            name_class(region.label, region.index),
            _percent(region.share),
            None if region.index in background else colours[region.index],
        )
        for region in regions
    ]
    draw_panel(canvas, rows)
    return canvas


def draw_depth(picture: Image, values: Array, corner: tuple[int, int], depth: Depths) -> Image:
    """Return the depth map of a picture: near is light, far is dark. What the model did not see is dimmed and grey.

    Args:
        picture: upright.
        values: the model's value for each pixel that it saw, (h, w).
        corner: row and column of the first of them.
        depth: the range of the values.
    """
    from PIL import Image

    image, factor = enlarge(picture), enlargement(picture.size)
    canvas = dim_unseen(image, values.shape, corner, factor)
    span = depth.nearest - depth.farthest
    near = (values - depth.farthest) / span if span else np.ones(values.shape)
    colours = Image.fromarray(scale_colours(near))
    seen = place_map(values.shape, corner, factor)
    canvas.paste(colours.resize((seen[2] - seen[0], seen[3] - seen[1]), Image.Resampling.BILINEAR), seen[:2])
    scale: list[Colour] = [(int(r), int(g), int(b)) for r, g, b in scale_colours(np.linspace(1, 0, _STEPS))]
    draw_panel(canvas, [PanelRow(f"near {depth.nearest:.3g}", f"far {depth.farthest:.3g}")], scale=scale)
    return canvas


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def place_map(shape: Sequence[int], corner: tuple[int, int], factor: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a map in the enlarged picture."""
    top, left = corner
    return left * factor, top * factor, (left + shape[1]) * factor, (top + shape[0]) * factor


def dim_unseen(image: Image, shape: Sequence[int], corner: tuple[int, int], factor: int) -> Image:
    """Return the picture in grey, dimmed if a part of it was not seen."""
    seen = place_map(shape, corner, factor)
    grey = image.convert("L")
    if seen != (0, 0, *image.size):
        grey = grey.point([round(level * _UNSEEN) for level in range(256)])
    return grey.convert("RGB")


def find_borders(classes: Array, width: int) -> Array:
    """Return bool (h, w): True within `width` pixels of another class."""
    borders = np.zeros(classes.shape, dtype=bool)
    rows, columns = classes[1:] != classes[:-1], classes[:, 1:] != classes[:, :-1]
    for shift in range(width):
        borders[1 + shift :] |= rows[: len(rows) - shift] if shift else rows
        borders[:, 1 + shift :] |= columns[:, : columns.shape[1] - shift] if shift else columns
    return borders
