"""From an image to the model's input: one implementation for calibration, evaluation, reference and runtime.

It gives the numbers of the evaluation transforms of timm and torchvision, and within rounding those of the image
processors of transformers (see `pixel_check`). It does not need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.data.geometry import ImageArea, place
from vitdeploy.data.images import open_image as open_image
from vitdeploy.data.picture import MAX_BYTE, resize, to_mode
from vitdeploy.errors import DataError
from vitdeploy.limits import MAX_PIXELS
from vitdeploy.recipe import InputForm, Preprocess
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image


def apply(image: Image | Array, preprocess: Preprocess) -> Array:
    """Preprocess an image for the model: float32 (planes, height, width).

    Args:
        image: a Pillow image, or uint8 (height, width) or (height, width, 1 or 3).
        preprocess: the model's preprocessing.

    Raises:
        DataError: an array that is not a uint8 image.
    """
    return normalize(to_pixels(image, preprocess), preprocess)


def to_pixels(image: Image | Array, preprocess: Preprocess) -> Array:
    """Bring an image to the model's size, before any arithmetic: uint8 (planes, height, width).

    The steps are: turn it as EXIF says, convert to RGB or grey, resize, crop the centre or pad, order the channels. The
    planes are the channels, and the mask of the padding if the model takes one.

    Raises:
        DataError: an array that is not a uint8 image, or an image that is too long and thin.
    """
    upright = _convert(image, preprocess.channels)
    area = place(upright.height, upright.width, preprocess)
    _refuse_stretched(upright, area)
    planes = channels_first(np.asarray(resize(upright, (area.height, area.width), preprocess)))
    return _place_on_canvas(order_channels(planes, preprocess), area, preprocess)


def _refuse_stretched(image: Image, area: ImageArea) -> None:
    """Refuse a long and thin image that becomes huge before its centre is cropped."""
    limit = max(MAX_PIXELS.value, image.width * image.height)
    if area.width * area.height > limit:
        raise DataError(
            f"an image of {image.width}x{image.height} pixels becomes {area.width}x{area.height} by its preprocessing, "
            f"more than {limit:,} pixels",
            fix="Crop it, or export with --resize exact.",
        )


def order_channels(planes: Array, preprocess: Preprocess) -> Array:
    """Bring colours (channels, height, width) from red, green, blue to the order in which the model gets them."""
    return planes[::-1] if preprocess.channel_order == "bgr" else planes


def add_mask(planes: Array, preprocess: Preprocess) -> Array:
    """Add a mask without padding to planes (channels, height, width), if the model takes one."""
    if not preprocess.mask:
        return planes
    return np.concatenate([planes, np.full((1, *planes.shape[1:]), MAX_BYTE, planes.dtype)])


def read_colours(planes: Array, preprocess: Preprocess) -> Array:
    """Return the colours in planes (..., planes, height, width): red, green and blue, or grey."""
    colours = planes[..., : preprocess.channels, :, :]
    return colours[..., ::-1, :, :] if preprocess.channel_order == "bgr" else colours


def to_rgb(image: Image) -> Image:
    """Return an image for people: upright, in RGB, and 16-bit grey scaled to 8 bits."""
    return _convert(image, 3)


def upright_size(image: Image) -> tuple[int, int]:
    """Return height and width after turning the image as its EXIF data says."""
    from PIL import ImageOps

    upright: Image = ImageOps.exif_transpose(image)
    return upright.height, upright.width


def channels_first(image: Array) -> Array:
    """Transpose (height, width) or (height, width, channels) to (channels, height, width)."""
    return np.ascontiguousarray((image[:, :, None] if image.ndim == 2 else image).transpose(2, 0, 1))


def normalize(pixels: Array, preprocess: Preprocess) -> Array:
    """Turn uint8 (..., planes, height, width) into float32: scale to [0, 1], then (x - mean) / std."""
    mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in plane_statistics(preprocess))
    values: Array = (pixels.astype(np.float32) / np.float32(MAX_BYTE) - mean) / std
    return values


def plane_statistics(preprocess: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of each plane. Those of a mask leave it as it is: 1 for image, 0 for padding."""
    added = preprocess.planes - preprocess.channels
    return preprocess.mean + (0.0,) * added, preprocess.std + (1.0,) * added


def fill_bytes(preprocess: Preprocess) -> tuple[int, ...]:
    """Return the byte with which each plane is padded. That of a mask is 0."""
    mean = tuple(min(max(round(MAX_BYTE * m), 0), MAX_BYTE) for m in preprocess.mean)
    return (mean if preprocess.fill is None else preprocess.fill) + (0,) * (preprocess.planes - preprocess.channels)


def to_input(pixels: Array, preprocess: Preprocess, form: InputForm) -> Array:
    """Turn uint8 (..., planes, height, width) into the artifact's input (see `InputForm`)."""
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
    return to_mode(as_image(image) if isinstance(image, np.ndarray) else image, channels)


def _place_on_canvas(planes: Array, area: ImageArea, preprocess: Preprocess) -> Array:
    """Crop or pad the planes of the resized image to the model's input, and add its mask."""
    rows, columns = preprocess.size
    top, left = max(area.top, 0), max(area.left, 0)
    part = add_mask(planes[:, top : top + rows, left : left + columns], preprocess)
    if part.shape[1:] == (rows, columns):
        return np.ascontiguousarray(part)
    canvas = np.empty((preprocess.planes, rows, columns), np.uint8)
    canvas[:] = np.asarray(fill_bytes(preprocess), np.uint8)[:, None, None]
    y, x = max(-area.top, 0), max(-area.left, 0)
    canvas[:, y : y + part.shape[1], x : x + part.shape[2]] = part
    return canvas
