"""The picture of a detector's answer: a box around each object, with its class and score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitdeploy.evidence.predictions import Box
from vitdeploy.render.pictures.canvas import (
    enlarge,
    enlargement,
    font_size,
    line_width,
    load_font,
    name_class,
    shorten,
)
from vitdeploy.render.pictures.colours import BLACK, Colour, colours_of_classes, text_on

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw


def draw_boxes(picture: Image, boxes: Sequence[Box]) -> Image:
    """Return a copy of a picture with its objects. Those with the highest score are drawn last, on top."""
    from PIL import ImageDraw

    image = enlarge(picture)
    factor = enlargement(picture.size)
    colours = colours_of_classes(list(dict.fromkeys(box.index for box in boxes)))
    draw = ImageDraw.Draw(image)
    ranked = sorted(boxes, key=lambda box: box.score)
    corners = [clip_box(box.box, factor, image.size) for box in ranked]
    for box, corner in zip(ranked, corners, strict=True):
        _draw_frame(draw, corner, line_width(image), colours[box.index])
    for box, corner in zip(ranked, corners, strict=True):
        name, score = name_class(box.label, box.index), f" {100 * box.score:.0f} %"
        draw_tag(draw, image, corner, name, score, colours[box.index])
    return image


def clip_box(box: tuple[float, float, float, float], factor: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the corners in pixels of the enlarged picture, and inside of it."""
    width, height = size
    columns = sorted(min(max(round(x * factor), 0), width - 1) for x in box[::2])
    rows = sorted(min(max(round(y * factor), 0), height - 1) for y in box[1::2])
    return columns[0], rows[0], columns[1], rows[1]


def _draw_frame(draw: ImageDraw, corners: tuple[int, int, int, int], width: int, colour: Colour) -> None:
    """Draw a frame with a thin dark edge, so that it is seen on a background of its own colour."""
    edge = max(1, width // 3)
    draw.rectangle(corners, outline=BLACK, width=width + 2 * edge)
    left, top, right, bottom = corners
    if right - left > 2 * edge and bottom - top > 2 * edge:
        draw.rectangle((left + edge, top + edge, right - edge, bottom - edge), outline=colour, width=width)


def draw_tag(
    draw: ImageDraw, image: Image, corners: tuple[int, int, int, int], name: str, score: str, colour: Colour
) -> None:
    """Draw a tag above the box, or inside it at the edge of the picture."""
    size, width = font_size(image), line_width(image)
    font, pad = load_font(size), max(2, size // 3)
    shown = shorten(name, font, image.width // 2 - font.getlength(score)) + score
    tag_width, tag_height = round(font.getlength(shown)) + 2 * pad, round(1.4 * size)
    left = max(0, min(corners[0], image.width - tag_width))
    top = corners[1] - tag_height + width if corners[1] >= tag_height else corners[1]
    draw.rectangle((left, top, left + tag_width, top + tag_height), fill=colour, outline=BLACK)
    draw.text((left + pad, top + tag_height / 2), shown, font=font, fill=text_on(colour), anchor="lm")
