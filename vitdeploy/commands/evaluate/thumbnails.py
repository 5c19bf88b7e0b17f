"""Small pictures of images that a model saw."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from vitdeploy.data.frames import middle_frame
from vitdeploy.data.preprocess import as_image, read_colours
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

_SIDE = 96


def draw_thumbnail(image: Array, preprocess: Preprocess) -> Array:
    """Return a small picture of an image, uint8 (height, width, 1 or 3).

    Args:
        image: as the model sees it, uint8 (planes, height, width); a clip is shown by its frame in the middle.
        preprocess: the model's preprocessing.
    """
    colours = read_colours(middle_frame(image), preprocess)
    picture = as_image(np.ascontiguousarray(colours.transpose(1, 2, 0)))
    picture.thumbnail((_SIDE, _SIDE))
    small = np.asarray(picture)
    return small[:, :, None] if small.ndim == 2 else small


def pack_thumbnails(pictures: Sequence[Array]) -> bytes:
    """Return an `.npz` with each picture by its number."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{str(number): picture for number, picture in enumerate(pictures)})
    return buffer.getvalue()
