"""From an encoded image to the model's input, with NumPy and Pillow alone. Written by vitdeploy.

The pixels are those of vitdeploy's own preprocessing, to the byte. `preprocess` has the fields of `preprocess` in an
artifact's manifest.json.
"""

from __future__ import annotations

import io
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from vitdeploy_geometry import place
from vitdeploy_picture import resize, to_mode

Array: TypeAlias = "np.ndarray[Any, Any]"


def open_image(content: bytes, preprocess: Any) -> Image.Image:
    """Decode an image file, turn it upright, and convert it to RGB or 8-bit grey."""
    with Image.open(io.BytesIO(content)) as file:
        image: Image.Image = to_mode(file, preprocess.channels)
    return image


def prepare(image: Image.Image, preprocess: Any, form: str) -> Array:
    """Return an upright image as the model's input: (planes, height, width)."""
    area = place(image.height, image.width, preprocess)
    pixels = np.asarray(resize(image, (area.height, area.width), preprocess)).reshape(area.height, area.width, -1)
    planes = pixels.transpose(2, 0, 1)
    if preprocess.channel_order == "bgr":
        planes = planes[::-1]
    fill = preprocess.fill or [min(max(round(255 * mean), 0), 255) for mean in preprocess.mean]
    mean, std = preprocess.mean, preprocess.std
    if preprocess.mask:
        planes = np.concatenate([planes, np.full((1, *planes.shape[1:]), 255, np.uint8)])
        fill, mean, std = [*fill, 0], [*mean, 0.0], [*std, 1.0]
    rows, columns = preprocess.size
    canvas = np.empty((len(fill), rows, columns), np.uint8)
    canvas[:] = np.array(fill, np.uint8)[:, None, None]
    top, left = max(area.top, 0), max(area.left, 0)
    part = planes[:, top : top + rows, left : left + columns]
    y, x = max(-area.top, 0), max(-area.left, 0)
    canvas[:, y : y + part.shape[1], x : x + part.shape[2]] = part
    if form == "uint8":
        return canvas
    if form == "pixels":
        return canvas.astype(np.float32)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
    values: Array = (canvas.astype(np.float32) / np.float32(255) - mean) / std
    return values
