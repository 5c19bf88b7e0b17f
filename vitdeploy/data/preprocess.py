"""From an image to the model's input: one implementation for calibration, evaluation, reference and runtime.

It gives the same numbers as the evaluation transforms of timm and torchvision, and does not need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.data.images import open_image as open_image
from vitdeploy.errors import DataError
from vitdeploy.recipe import InputForm, Preprocess
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image

_FLOOR_SLACK = 1e-6  # 224 / (224 / 232) is 231.99999999999997, and means 232
MAX_BYTE = 255


def apply(image: Image | Array, preprocess: Preprocess) -> Array:
    """Preprocess an image for the model: float32 (channels, height, width).

    Args:
        image: a Pillow image, or uint8 (height, width) or (height, width, 1 or 3).
        preprocess: the model's preprocessing.

    Raises:
        DataError: an array that is not a uint8 image.
    """
    return normalize(to_pixels(image, preprocess), preprocess)


def to_pixels(image: Image | Array, preprocess: Preprocess) -> Array:
    """Bring an image to the model's size, before any arithmetic: uint8 (channels, height, width).

    The steps are: turn it as EXIF says, convert to RGB or grey, resize, crop the centre.

    Raises:
        DataError: an array that is not a uint8 image.
    """
    cropped = _crop_centre(_resize(_convert(image, preprocess.channels), preprocess), preprocess.size)
    return channels_first(np.asarray(cropped))


def visible_area(height: int, width: int, preprocess: Preprocess) -> tuple[float, float, float, float]:
    """Return the area of an upright image that the model sees: top, left, bottom and right in the image's pixels."""
    resized_height, resized_width = _resized_size(height, width, preprocess)
    rows, columns = preprocess.size
    top, left = _centre_corner(resized_height, resized_width, preprocess.size)
    y_scale, x_scale = height / resized_height, width / resized_width
    return top * y_scale, left * x_scale, (top + rows) * y_scale, (left + columns) * x_scale


def upright_size(image: Image) -> tuple[int, int]:
    """Return height and width after turning the image as its EXIF data says."""
    from PIL import ImageOps

    upright: Image = ImageOps.exif_transpose(image)
    return upright.height, upright.width


def channels_first(image: Array) -> Array:
    """Transpose (height, width) or (height, width, channels) to (channels, height, width)."""
    return np.ascontiguousarray((image[:, :, None] if image.ndim == 2 else image).transpose(2, 0, 1))


def normalize(pixels: Array, preprocess: Preprocess) -> Array:
    """Turn uint8 (..., channels, height, width) into float32: scale to [0, 1], then (x - mean) / std."""
    mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (preprocess.mean, preprocess.std))
    values: Array = (pixels.astype(np.float32) / np.float32(MAX_BYTE) - mean) / std
    return values


def to_input(pixels: Array, preprocess: Preprocess, form: InputForm) -> Array:
    """Turn uint8 (..., channels, height, width) into the artifact's input (see `InputForm`)."""
    if form == "normalized":
        return normalize(pixels, preprocess)
    return pixels if form == "uint8" else pixels.astype(np.float32)


def as_image(array: Array) -> Image:
    """Turn a uint8 array into a Pillow image.

    Raises:
        DataError: the array has another type or shape.
    """
    from PIL import Image

    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise DataError(
            f"an array of {array.dtype} {array.shape} is not an image",
            fix="Give uint8, (height, width) or (height, width, 3).",
        )
    return Image.fromarray(array)


def _convert(image: Image | Array, channels: int) -> Image:
    """Turn the image upright, and convert it to RGB or to 8-bit grey."""
    from PIL import ImageOps

    original = as_image(image) if isinstance(image, np.ndarray) else image
    mode = "L" if channels == 1 else "RGB"
    upright: Image = ImageOps.exif_transpose(original)
    if upright.mode.startswith("I") or upright.mode == "F":
        # Pillow would clip 16-bit grey at 255: an X-ray becomes white.
        upright = _to_eight_bits(upright)
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")  # gives the same colours; a direct conversion to RGB makes Pillow warn
    return upright if upright.mode == mode else upright.convert(mode)


def _to_eight_bits(image: Image) -> Image:
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    scale = 257.0 if values.max(initial=0) > MAX_BYTE else 1.0  # 65535 / 255
    return Image.fromarray(np.clip(values / scale, 0, MAX_BYTE).astype(np.uint8))


def size_before_crop(preprocess: Preprocess) -> tuple[int, int]:
    """Return height and width before the centre is cropped: size / crop_pct."""
    height, width = (int(side / preprocess.crop_pct + _FLOOR_SLACK) for side in preprocess.size)
    return height, width


def _resize(image: Image, preprocess: Preprocess) -> Image:
    from PIL import Image

    height, width = _resized_size(image.height, image.width, preprocess)
    if (height, width) == (image.height, image.width):
        return image
    return image.resize((width, height), Image.Resampling[preprocess.interpolation.upper()])


def _resized_size(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """Compute the size after resizing: exactly size / crop_pct ("exact"), or just covering that ("shortest")."""
    target = size_before_crop(preprocess)
    return _cover(height, width, target) if preprocess.resize == "shortest" else target


def _cover(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    """Scale height and width, with their ratio kept, until they just cover `target`.

    For a square target the longer side is rounded down, as in torchvision's Resize. Otherwise it is rounded to the
    nearest, as in timm.
    """
    if target[0] == target[1]:
        side = target[0]
        return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    ratio = min(height / target[0], width / target[1])
    return max(target[0], round(height / ratio)), max(target[1], round(width / ratio))


def _crop_centre(image: Image, size: tuple[int, int]) -> Image:
    height, width = size
    if (image.height, image.width) == size:
        return image
    top, left = _centre_corner(image.height, image.width, size)
    return image.crop((left, top, left + width, top + height))


def _centre_corner(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Top and left of the centre crop."""
    return round((height - size[0]) / 2), round((width - size[1]) / 2)
