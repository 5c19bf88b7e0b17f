"""From an image to the model's input, once for calibration, evaluation, reference and runtime.

The same numbers as the evaluation transforms of timm and torchvision on the same image, without needing torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.errors import DataError
from vitdeploy.recipe import InputForm, Preprocess
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image

_FLOOR_SLACK = 1e-6  # 224 / (224 / 232) is 231.99999999999997, and means 232
MAX_BYTE = 255


def open_image(path: Path) -> Image:
    """The image in `path`, decoded.

    Raises:
        DataError: the file is missing, is no image, or is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            decoded: Image.Image = image
            return decoded
    except FileNotFoundError:
        raise DataError(f"there is no image {path}", fix="Check the path.") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image", fix="Give JPEG, PNG or another format that Pillow reads.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # all of them Pillow's, by format
        raise DataError(f"{path} is damaged: {' '.join(str(error).split())}", fix="Replace the file.") from None


def apply(image: Image | Array, preprocess: Preprocess) -> Array:
    """`image` as the model reads it: float32 (channels, height, width).

    Args:
        image: a Pillow image, or uint8 (height, width) or (height, width, 1 or 3).
        preprocess: what the model wants.

    Raises:
        DataError: an array that is not a uint8 image.
    """
    return normalized(pixels(image, preprocess), preprocess)


def pixels(image: Image | Array, preprocess: Preprocess) -> Array:
    """`image` at the model's size, before any arithmetic: uint8 (channels, height, width).

    Orientation from EXIF, RGB or grey, resize, centre crop.

    Raises:
        DataError: an array that is not a uint8 image.
    """
    cropped = _cropped(_resized(_in_mode(image, preprocess.channels), preprocess), preprocess.size)
    return channels_first(np.asarray(cropped))


def view(height: int, width: int, preprocess: Preprocess) -> tuple[float, float, float, float]:
    """Top, left, bottom and right of what the model sees of an upright image, in its pixels."""
    resized_height, resized_width = _resized_size(height, width, preprocess)
    rows, columns = preprocess.size
    top, left = _corner(resized_height, resized_width, preprocess.size)
    down, across = height / resized_height, width / resized_width
    return top * down, left * across, (top + rows) * down, (left + columns) * across


def upright(image: Image) -> tuple[int, int]:
    """Height and width after turning the image as its EXIF data says."""
    from PIL import ImageOps

    turned: Image = ImageOps.exif_transpose(image)
    return turned.height, turned.width


def channels_first(image: Array) -> Array:
    """(height, width) or (height, width, channels) as (channels, height, width)."""
    return np.ascontiguousarray((image[:, :, None] if image.ndim == 2 else image).transpose(2, 0, 1))


def normalized(pixels: Array, preprocess: Preprocess) -> Array:
    """uint8 (..., channels, height, width) as float32: [0, 1], then (x - mean) / std."""
    mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (preprocess.mean, preprocess.std))
    scaled: Array = (pixels.astype(np.float32) / np.float32(MAX_BYTE) - mean) / std
    return scaled


def fed(pixels: Array, preprocess: Preprocess, form: InputForm) -> Array:
    """uint8 (..., channels, height, width) as the artifact takes it: see `InputForm`."""
    if form == "normalized":
        return normalized(pixels, preprocess)
    return pixels if form == "uint8" else pixels.astype(np.float32)


def as_image(array: Array) -> Image:
    """A uint8 array as a Pillow image.

    Raises:
        DataError: another type or shape.
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


def _in_mode(image: Image | Array, channels: int) -> Image:
    from PIL import ImageOps

    opened = as_image(image) if isinstance(image, np.ndarray) else image
    mode = "L" if channels == 1 else "RGB"
    turned: Image = ImageOps.exif_transpose(opened)
    if turned.mode.startswith("I") or turned.mode == "F":
        # Pillow would clip 16-bit grey at 255: an X-ray becomes white.
        turned = _eight_bit(turned)
    if turned.mode == "P" and "transparency" in turned.info:
        turned = turned.convert("RGBA")  # the same colours; Pillow warns on the direct way
    return turned if turned.mode == mode else turned.convert(mode)


def _eight_bit(image: Image) -> Image:
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    scale = 257.0 if values.max(initial=0) > MAX_BYTE else 1.0  # 65535 / 255
    return Image.fromarray(np.clip(values / scale, 0, MAX_BYTE).astype(np.uint8))


def resized_to(preprocess: Preprocess) -> tuple[int, int]:
    """Height and width before the centre is cropped: size / crop_pct."""
    height, width = (int(side / preprocess.crop_pct + _FLOOR_SLACK) for side in preprocess.size)
    return height, width


def _resized(image: Image, preprocess: Preprocess) -> Image:
    from PIL import Image

    height, width = _resized_size(image.height, image.width, preprocess)
    if (height, width) == (image.height, image.width):
        return image
    return image.resize((width, height), Image.Resampling[preprocess.interpolation.upper()])


def _resized_size(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """Each side at size / crop_pct ("exact"), or the tighter side, keeping the aspect ratio ("shortest")."""
    target = resized_to(preprocess)
    return _covering(height, width, target) if preprocess.resize == "shortest" else target


def _covering(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    """Height and width scaled so that they just cover `target`.

    A square target rounds the longer side down, as torchvision's Resize does; another rounds, as timm does.
    """
    if target[0] == target[1]:
        side = target[0]
        return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    ratio = min(height / target[0], width / target[1])
    return max(target[0], round(height / ratio)), max(target[1], round(width / ratio))


def _cropped(image: Image, size: tuple[int, int]) -> Image:
    height, width = size
    if (image.height, image.width) == size:
        return image
    top, left = _corner(image.height, image.width, size)
    return image.crop((left, top, left + width, top + height))


def _corner(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Top and left of the centre crop."""
    return round((height - size[0]) / 2), round((width - size[1]) / 2)
