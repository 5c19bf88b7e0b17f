"""A picture to draw on: its size, its font and widths, and panels whose text is readable on any background."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from vitdeploy.errors import UsageError
from vitdeploy.escaping import escape
from vitdeploy.render.pictures.colours import WHITE, Colour

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

_READABLE = 640
"""Pixels of the longer side: smaller pictures are enlarged, or text would not fit."""
_LETTERS_ACROSS, _LINES_DOWN = 40, 11  # the size of the font, as a share of the longer and of the shorter side
_MIN_FONT, _LINES_PER_SIDE = 9, 300
_MAX_LETTERS = 200  # of a name: measuring longer ones takes time, and no picture is that wide
_PANEL = (0, 0, 0, 168)  # white text on it has a contrast of at least 5 to 1, even on a white picture
_ELLIPSIS = "…"


@dataclass(frozen=True)
class Row:
    """A line of a panel: a name, a value, and a swatch or a bar before or behind them.

    Attributes:
        name: on the left.
        value: on the right.
        colour: of the swatch; None: there is none.
        share: the length of a bar under the line, from 0 to 1; None: there is none.
    """

    name: str
    value: str = ""
    colour: Colour | None = None
    share: float | None = None


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
    return max(2, round(max(picture.size) / _LINES_PER_SIDE))


def font_size(picture: Image) -> int:
    """Return the size of the font in pixels."""
    return max(_MIN_FONT, round(min(max(picture.size) / _LETTERS_ACROSS, min(picture.size) / _LINES_DOWN)))


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


def draw_panel(picture: Image, rows: Sequence[Row], *, scale: Sequence[Colour] = ()) -> None:
    """Draw a dark panel with rows in the lower left corner. Rows that do not fit are counted in the last one.

    Args:
        picture: RGB, changed in place.
        rows: the rows, the most important one first.
        scale: colours of a bar above the rows, from left to right.
    """
    from PIL import Image, ImageDraw

    size = font_size(picture)
    font, pad, height = load_font(size), max(3, size // 2), round(size * 1.5)
    bar = height if scale else 0
    fitting = max(1, (picture.height - 3 * pad - bar) // height)
    if len(rows) > fitting:
        rows = [*rows[: fitting - 1], Row(f"and {len(rows) - fitting + 1} more")]
    swatch = size + pad if any(row.colour is not None for row in rows) else 0
    values = max((font.getlength(row.value) for row in rows), default=0)
    widest = max((font.getlength(row.name) for row in rows), default=0)
    room = picture.width - 4 * pad - swatch - values
    inner = (
        max(min(widest, room) + 2 * pad + values, 10 * size if scale else 0) if room > 0 else picture.width - 4 * pad
    )
    box = (
        pad,
        round(picture.height - 2 * pad - height * len(rows) - bar),
        round(3 * pad + swatch + inner),
        picture.height - pad,
    )
    right = min(box[2], picture.width - pad)
    panel = Image.new("RGBA", (max(1, right - box[0]), max(1, box[3] - box[1])))
    draw = ImageDraw.Draw(panel)
    draw.rounded_rectangle((0, 0, panel.width - 1, panel.height - 1), radius=pad, fill=_PANEL)
    top, left, end = pad // 2, pad, panel.width - pad
    if scale:
        _draw_scale(panel, scale, (left, top + pad // 2, end, top + bar))
        top += bar
    for row in rows:
        middle = top + height // 2
        if row.share is not None:
            length = round((end - left) * min(max(row.share, 0.0), 1.0))
            track = (left, top + height - max(2, size // 6), left + length, top + height - 1)
            draw.rectangle(track, fill=(*(row.colour or WHITE), 255))
        elif row.colour is not None:
            edge = max(2, size * 2 // 5)
            draw.rectangle(
                (left, middle - edge, left + 2 * edge, middle + edge), fill=(*row.colour, 255), outline=(*WHITE, 255)
            )
        indent = swatch if row.share is None else 0
        name = shorten(row.name, font, end - left - indent - (values + pad if row.value else 0))
        draw.text((left + indent, middle), name, font=font, fill=(*WHITE, 255), anchor="lm")
        draw.text((end, middle), row.value, font=font, fill=(*WHITE, 255), anchor="rm")
        top += height
    picture.paste(panel, box[:2], panel)


def _draw_scale(panel: Image, colours: Sequence[Colour], box: tuple[int, int, int, int]) -> None:
    from PIL import Image

    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return
    strip = Image.new("RGB", (len(colours), 1))
    strip.putdata(list(colours))
    panel.paste(strip.resize((right - left, bottom - top), Image.Resampling.BILINEAR), (left, top))
