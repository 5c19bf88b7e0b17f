"""A picture to draw on: large enough for text, with a font and lines that fit its size."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING

from vitdeploy.errors import UsageError
from vitdeploy.escaping import escape

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

_READABLE = 640
"""Pixels of the longer side: smaller pictures are enlarged, or text would not fit."""
_ROWS_ALONG, _ROWS_ACROSS, _MIN_FONT = 40, 12, 10  # of text: how many go into the longer and into the shorter side
_LINES_ALONG, _LINES_ACROSS = 240, 24  # the same for frames
_MAX_LETTERS = 200  # of a name: measuring longer ones takes time, and no picture is that wide
_ELLIPSIS = "…"


def enlargement(size: tuple[int, int]) -> int:
    """Return the whole factor by which a small picture is enlarged."""
    return max(1, -(-_READABLE // max(size)))


def enlarge(picture: Image) -> Image:
    """Return the picture in RGB, enlarged by a whole factor if it is too small for text."""
    from PIL import Image

    factor, rgb = enlargement(picture.size), picture if picture.mode == "RGB" else picture.convert("RGB")
    if factor == 1:
        return rgb.copy()
    return rgb.resize((rgb.width * factor, rgb.height * factor), Image.Resampling.BICUBIC)


def line_width(picture: Image) -> int:
    """Return the width of lines in pixels."""
    return max(2, round(min(max(picture.size) / _LINES_ALONG, min(picture.size) / _LINES_ACROSS)))


def font_size(picture: Image) -> int:
    """Return the size of the font in pixels."""
    return max(_MIN_FONT, round(min(max(picture.size) / _ROWS_ALONG, min(picture.size) / _ROWS_ACROSS)))


@cache
def load_font(size: int) -> FreeTypeFont:
    """Return the font that comes with Pillow.

    Raises:
        UsageError: Pillow was built without FreeType.
    """
    from PIL import ImageFont

    try:
        font = ImageFont.load_default(size)
    except ImportError:
        raise UsageError(
            "this Pillow cannot draw text: it was built without FreeType",
            fix="Install a wheel: pip install --force-reinstall --only-binary :all: pillow",
        ) from None
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def name_class(label: str, index: int) -> str:
    """Return a class name in letters that the font has. A name with other letters becomes `class 17`."""
    plain = to_plain(label)
    return plain if all(_has_glyph(character) for character in plain) else f"class {index}"


def to_plain(text: str) -> str:
    """Return a text on one line and without accents: the font has little more than the letters of English."""
    decomposed = unicodedata.normalize("NFKD", escape(text[:_MAX_LETTERS]))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


@cache
def _has_glyph(character: str) -> bool:
    font = load_font(20)
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))  # which no font has


def shorten(text: str, font: FreeTypeFont, width: float) -> str:
    """Return as much of a text as fits into `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + _ELLIPSIS) > width:
        text = text[:-1]
    return text.rstrip() + _ELLIPSIS if text else ""
