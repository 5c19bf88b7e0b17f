"""Open image files: formats from an allow-list, and bounds on pixels before anything is decoded."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vitdeploy.errors import DataError
from vitdeploy.limits import MAX_IMAGE_BYTES, MAX_PIXELS
from vitdeploy.plain_files import UnusableFile, open_plain

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's names. Its other formats start programs (EPS starts Ghostscript), or are rare and little tested.

Phones write several JPEGs into one file (MPO), which Pillow opens as JPEG. Of several frames the first one counts.
"""
_NAMES = "JPEG, PNG, WebP, BMP, TIFF, GIF or PPM"
_ORIENTATION = 0x0112  # EXIF's tag


def open_image(path: Path) -> Image:
    """Open and decode an image; of several frames, the first one.

    Raises:
        DataError: the file is missing, is not a plain file, is not an image of an allowed format, has too many pixels,
            or is damaged.
    """
    try:
        with open_plain(path, MAX_IMAGE_BYTES.value) as file:
            return decode_image(path, file)
    except FileNotFoundError:
        raise DataError(f"there is no image {path}", fix="Check the path.") from None
    except UnusableFile as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", fix="Give an image file.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", fix="Give a readable file.") from None


def decode_image(path: Path | str, file: BinaryIO) -> Image:
    """Decode an image; of several frames, the first one.

    Args:
        path: its path, or its name for messages.
        file: its contents, which can be searched.

    Raises:
        DataError: it is not an image of an allowed format, has too many pixels, or is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    limit = MAX_PIXELS.value
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # this limit replaces Pillow's, which is higher
    if Image.MAX_IMAGE_PIXELS is not None and limit > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit  # or Pillow would refuse what the user allows
    try:
        with Image.open(file, formats=FORMATS) as image:
            _refuse_large(path, image, limit)
            image.load()
            _check_exif(image)
            decoded: Image.Image = image
            return decoded
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image", fix=f"Give {_NAMES}.") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path} has more than {limit:,} pixels", fix=MAX_PIXELS.fix) from None
    except MemoryError:
        raise DataError(f"{path} does not fit into memory", fix="Scale it down.") from None
    except Exception as error:  # noqa: BLE001  Pillow's decoders raise whatever their arithmetic gives
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is damaged: {reason}", fix="Replace the file.") from None


def _refuse_large(path: Path | str, image: Image, limit: int) -> None:
    if image.width * image.height > limit:
        raise DataError(f"{path} has {image.width}x{image.height} pixels, more than {limit:,}", fix=MAX_PIXELS.fix)


def _check_exif(image: Image) -> None:
    """Read the EXIF data, and write it as Pillow does when it turns the image: both raise if it is damaged."""
    exif = image.getexif()
    if exif.get(_ORIENTATION, 1) != 1:
        exif.tobytes()
