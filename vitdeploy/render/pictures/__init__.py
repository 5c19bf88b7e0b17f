"""Answers of a model as pictures: boxes, coloured regions and objects, keypoints, depth maps, and the best classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitdeploy.evidence.predictions import Answer
from vitdeploy.render.pictures.boxes import draw_boxes
from vitdeploy.render.pictures.classes import draw_classes, draw_lines
from vitdeploy.render.pictures.instances import draw_instances
from vitdeploy.render.pictures.keypoints import draw_keypoints
from vitdeploy.render.pictures.maps import draw_depth, draw_regions
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image


def draw_answer(
    picture: Image, answer: Answer, lines: Sequence[str], pixels: Array | None, corner: tuple[int, int]
) -> Image:
    """Return a copy of a picture with an answer drawn on it. Small pictures are enlarged.

    Args:
        picture: upright.
        answer: what the task has read from the model's outputs.
        lines: the answer in words, for answers that have no picture of their own.
        pixels: the answer for each pixel that the model saw, (h, w); None if the task gives none.
        corner: row and column of the first of these pixels.
    """
    if answer.boxes:
        return draw_boxes(picture, answer.boxes)
    if answer.keypoints:
        return draw_keypoints(picture, answer.keypoints)
    if pixels is not None and answer.instances:
        return draw_instances(picture, pixels, corner, answer.instances)
    if pixels is not None and answer.depth is not None:
        return draw_depth(picture, pixels, corner, answer.depth)
    if pixels is not None and answer.regions:
        return draw_regions(picture, pixels, corner, answer.regions)
    return draw_classes(picture, answer.top) if answer.top else draw_lines(picture, lines)
