"""A dark panel in the corner of a picture, whose text is readable on any background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitdeploy.render.pictures.canvas import font_size, load_font, shorten
from vitdeploy.render.pictures.colours import WHITE, Colour

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

_BACKGROUND = (0, 0, 0, 192)  # white text on it has a contrast of at least 10 to 1, even on a white picture
_MAX_ROWS = 10  # more would hide the picture
_MAX_SHARE = 0.75  # of the width of the picture


@dataclass(frozen=True)
class PanelRow:
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


def draw_panel(picture: Image, rows: Sequence[PanelRow], *, scale: Sequence[Colour] = ()) -> None:
    """Draw a dark panel with rows in the lower left corner. Rows that do not fit are counted in the last one.

    Args:
        picture: RGB, changed in place.
        rows: the rows, the most important one first.
        scale: colours of a bar above the rows, from left to right.
    """
    from PIL import Image, ImageDraw

    size = font_size(picture)
    pad, height = max(3, size // 2), round(size * 1.5)
    bar = height if scale else 0
    fitting = min(max(1, (picture.height - 3 * pad - bar) // height), _MAX_ROWS)
    if len(rows) > fitting:
        more = [PanelRow(f"and {len(rows) - fitting + 1} more")] if fitting > 1 else []
        rows = [*rows[: fitting - len(more)], *more]
    columns = _Columns(rows, size, pad)
    width = min(max(columns.width + 2 * pad, 12 * size if scale else 0), picture.width - 2 * pad)
    if picture.width > _MAX_ROWS * size:
        width = min(width, round(_MAX_SHARE * picture.width))
    panel = Image.new("RGBA", (max(1, width), height * len(rows) + bar + pad))
    draw = ImageDraw.Draw(panel)
    draw.rounded_rectangle((0, 0, panel.width - 1, panel.height - 1), radius=pad, fill=_BACKGROUND)
    if scale:
        _draw_scale(panel, scale, (pad, pad, panel.width - pad, bar))
    for number, row in enumerate(rows):
        columns.draw_row(draw, row, pad // 2 + bar + number * height, (pad, panel.width - pad), height)
    picture.paste(panel, (pad, max(0, picture.height - pad - panel.height)), panel)


class _Columns:
    """The columns of a panel: swatches, names and values.

    Args:
        rows: all rows.
        size: of the font, in pixels.
        pad: the space between columns, in pixels.
    """

    def __init__(self, rows: Sequence[PanelRow], size: int, pad: int) -> None:
        self._font: FreeTypeFont = load_font(size)
        self._size, self._pad = size, pad
        self._swatch = size + pad if any(row.colour is not None and row.share is None for row in rows) else 0
        values = max((self._font.getlength(row.value) for row in rows), default=0.0)
        self._values = round(values) + 2 * pad if values else 0
        names = max((self._font.getlength(row.name) for row in rows), default=0.0)
        self.width = self._swatch + round(names) + 1 + self._values

    def draw_row(self, draw: ImageDraw, row: PanelRow, top: int, ends: tuple[int, int], height: int) -> None:
        """Draw a row between the two `ends` of the panel."""
        left, right = ends
        middle = top + height // 2
        if row.share is not None:
            line = max(2, self._size // 6)
            length = round((right - left) * min(max(row.share, 0.0), 1.0))
            draw.rectangle((left, top + height - line, left + length, top + height - 1), fill=row.colour or WHITE)
            middle -= line
        elif row.colour is not None:
            edge = max(2, self._size * 2 // 5)
            square = (left, middle - edge, left + 2 * edge, middle + edge)
            draw.rectangle(square, fill=row.colour, outline=WHITE)
        name = shorten(row.name, self._font, right - left - self._swatch - (self._values if row.value else 0))
        draw.text((left + self._swatch, middle), name, font=self._font, fill=WHITE, anchor="lm")
        draw.text((right, middle), row.value, font=self._font, fill=WHITE, anchor="rm")


def _draw_scale(panel: Image, colours: Sequence[Colour], box: tuple[int, int, int, int]) -> None:
    from PIL import Image

    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return
    strip = Image.new("RGB", (len(colours), 1))
    strip.putdata(list(colours))
    panel.paste(strip.resize((right - left, bottom - top), Image.Resampling.BILINEAR), (left, top))
