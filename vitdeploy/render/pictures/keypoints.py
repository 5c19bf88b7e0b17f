"""The picture of a pose: a dot for each confident keypoint with its name, and the limbs between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitdeploy.evidence.predictions import Keypoint
from vitdeploy.render.pictures.canvas import enlarge, enlargement, font_size, line_width, load_font, name_class
from vitdeploy.render.pictures.colours import BLACK, WHITE, colour_of_class

if TYPE_CHECKING:
    from PIL.Image import Image

_LIMBS = (
    ("left ankle", "left knee"), ("left knee", "left hip"), ("right ankle", "right knee"), ("right knee", "right hip"),
    ("left hip", "right hip"), ("left shoulder", "left hip"), ("right shoulder", "right hip"),
    ("left shoulder", "right shoulder"), ("left shoulder", "left elbow"), ("right shoulder", "right elbow"),
    ("left elbow", "left wrist"), ("right elbow", "right wrist"), ("left eye", "right eye"), ("nose", "left eye"),
    ("nose", "right eye"), ("left eye", "left ear"), ("right eye", "right ear"), ("left ear", "left shoulder"),
    ("right ear", "right shoulder"),
)  # fmt: skip
"""The skeleton of COCO's person, by the names of its keypoints."""


def draw_keypoints(picture: Image, keypoints: Sequence[Keypoint]) -> Image:
    """Return a copy of a picture with its confident keypoints. Limbs are drawn where both of their ends are."""
    from PIL import ImageDraw

    image, factor = enlarge(picture), enlargement(picture.size)
    draw, width, size = ImageDraw.Draw(image), line_width(image), max(8, font_size(image) * 2 // 3)
    shown = [keypoint for keypoint in keypoints if keypoint.confident]
    places = {k.label: ((k.x + 0.5) * factor, (k.y + 0.5) * factor) for k in shown}
    for start, end in _LIMBS:
        if start in places and end in places:
            draw.line((*places[start], *places[end]), fill=BLACK, width=width + 2)
            draw.line((*places[start], *places[end]), fill=WHITE, width=width)
    for keypoint in shown:
        x, y = places[keypoint.label]
        colour, radius = colour_of_class(keypoint.index), 1.5 * width
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=BLACK)
    font = load_font(size)
    for keypoint in shown:
        x, y = places[keypoint.label]
        name = name_class(keypoint.label, keypoint.index)
        draw.text((x + 2 * width, y), name, font=font, fill=WHITE, stroke_width=1, stroke_fill=BLACK, anchor="lm")
    return image
