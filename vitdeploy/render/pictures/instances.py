"""The picture of objects with masks: each in a colour of its own, with its class and score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.evidence.predictions import Instance
from vitdeploy.render.pictures.boxes import clip_box, draw_tag
from vitdeploy.render.pictures.canvas import enlarge, enlargement, line_width, name_class
from vitdeploy.render.pictures.colours import WHITE, colour_of_class
from vitdeploy.render.pictures.maps import dim_unseen, find_borders, place_map
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image

_OPACITY = 0.6  # of the colour of an object; the rest is the picture in grey


def draw_instances(picture: Image, numbers: Array, corner: tuple[int, int], instances: Sequence[Instance]) -> Image:
    """Return a grey copy of a picture with its objects in colour, white borders around them, and a tag for each.

    Objects of one class have different colours. After 21 objects the colours repeat.

    Args:
        picture: upright.
        numbers: the number of the object in each pixel that the model saw, from 1 on, (h, w); 0 for none.
        corner: row and column of the first of these pixels.
        instances: the objects, highest score first.
    """
    from PIL import Image, ImageDraw

    image, factor = enlarge(picture), enlargement(picture.size)
    canvas = dim_unseen(image, numbers.shape, corner, factor)
    seen = place_map(numbers.shape, corner, factor)
    colours = [colour_of_class(number) for number in range(len(instances))]
    table = np.array([WHITE, *colours], dtype=np.uint8)
    large = numbers.repeat(factor, axis=0).repeat(factor, axis=1)
    grey = image.crop(seen).convert("L").convert("RGB")
    mixed = Image.blend(grey, Image.fromarray(table[large]), _OPACITY)
    mixed.paste(grey, mask=Image.fromarray(large == 0))
    mixed.paste(WHITE, mask=Image.fromarray(find_borders(large, max(1, line_width(image) // 2))))
    canvas.paste(mixed, seen[:2])
    draw = ImageDraw.Draw(canvas)
    for one, colour in reversed(list(zip(instances, colours, strict=True))):
        name, score = name_class(one.label, one.index), f" {100 * one.score:.0f} %"
        draw_tag(draw, canvas, clip_box(one.box, factor, canvas.size), name, score, colour)
    return canvas
