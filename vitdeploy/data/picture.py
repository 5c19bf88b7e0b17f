"""A Pillow image in the model's colours and at the model's size, with NumPy and Pillow alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # packages for servers carry this file, without vitdeploy
    from PIL.Image import Image

    from vitdeploy.recipe import Preprocess

MAX_BYTE = 255
_WIDE_PER_BYTE = 257.0  # 65535 / 255
_WIDE_FORMATS = ("PNG", "PPM")  # whose integers have 16 bits, whatever the mode that a version of Pillow gives them


def to_mode(image: Image, channels: int) -> Image:
    """Turn an image upright, and convert it to RGB or to 8-bit grey (one channel)."""
    from PIL import ImageOps

    mode = "L" if channels == 1 else "RGB"
    upright: Image = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        # Pillow would clip 16-bit grey at 255: an X-ray becomes white.
        upright = _to_eight_bits(upright, image.format)
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")  # gives the same colours; a direct conversion to RGB makes Pillow warn
    return upright if upright.mode == mode else upright.convert(mode)


def resize(image: Image, size: tuple[int, int], preprocess: Preprocess) -> Image:
    """Resize an image of 8-bit channels to (height, width), with the filter of the model."""
    from PIL import Image

    height, width = size
    if (height, width) == (image.height, image.width):
        return image
    resampling = Image.Resampling[preprocess.interpolation.upper()]
    if preprocess.antialias:
        return image.resize((width, height), resampling)
    # `transform` never widens its filter. On bytes it would round down, so it gets floats.
    scale = (image.width / width, 0.0, 0.0, 0.0, image.height / height, 0.0)
    floats = [channel.convert("F") for channel in image.split()]
    values = [np.asarray(f.transform((width, height), Image.Transform.AFFINE, scale, resampling)) for f in floats]
    bands = [Image.fromarray(np.rint(plane).clip(0, MAX_BYTE).astype(np.uint8)) for plane in values]
    return bands[0] if len(bands) == 1 else Image.merge(image.mode, bands)


def _to_eight_bits(image: Image, file_format: str | None) -> Image:
    """Scale grey above 8 bits, all images alike. Only where mode and format do not tell the scale, the values do."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    largest = values.max(initial=0)
    wide = image.mode.startswith("I;16") or (image.mode == "I" and file_format in _WIDE_FORMATS)
    if wide or largest > MAX_BYTE:
        values /= _WIDE_PER_BYTE
    elif image.mode == "F" and largest <= 1:
        values = np.rint(values * MAX_BYTE)
    return Image.fromarray(np.clip(values, 0, MAX_BYTE).astype(np.uint8))
