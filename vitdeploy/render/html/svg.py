"""What every chart is drawn with: scales, ticks, axes. Colours are CSS classes, so that the page's theme decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vitdeploy.render.html.markup import Markup, element
from vitdeploy.render.html.parts import Figure

WIDE, NARROW = 720, 344
"""Each chart is drawn for a desk and for a phone: scaled down, its text could not be read."""

_NICE = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Scale:
    """From values between `low` and `high` to pixels between `start` and `end`; logarithmic if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; beyond the ends it stays at the end."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, max(value, self.floor)))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    @property
    def floor(self) -> float:
        """The least value that the scale can take."""
        return self.low if self.log else -math.inf

    def ticks(self, count: int) -> list[float]:
        """About `count` round values."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            candidates = [m * 10.0**e for e in decades for m in (1, 2, 5)]
            return [v for v in candidates if self.low <= v <= self.high]
        rough = (self.high - self.low) / max(count, 1)
        power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
        step = next(n * power for n in _NICE if n * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(n * step, 10) for n in range(first, last + 1)]


def figure(draw: Callable[[int], Markup], caption: str) -> Figure:
    """A chart in both widths, with what it shows in words: that is its text for screen readers too."""
    return Figure(wide=draw(WIDE), narrow=draw(NARROW), caption=caption)


def canvas(width: float, height: float, *children: str, label: str) -> Markup:
    """An `<svg>` that is as wide as its place allows, up to the width it was drawn for."""
    return element(
        "svg", element("title", label), *children,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:g} {height:g}", width=width, height=height, role="img",
    )  # fmt: skip


def text(x: float, y: float, content: str, *, class_: str = "", anchor: str | None = None) -> Markup:
    """A line of text, its baseline at `y`."""
    return element("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str, *, closed: bool = False) -> Markup:
    """A line through points, or the area within."""
    told = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", d=f"M{told}{'Z' if closed else ''}", class_=class_)


def x_axis(scale: Scale, top: float, bottom: float, show: Callable[[float], str], *, count: int) -> Markup:
    """Grid lines from top to bottom with their values below."""
    marks = [
        line(scale(v), top, scale(v), bottom, "grid") + text(scale(v), bottom + 16, show(v), anchor="middle")
        for v in _apart(scale.ticks(count), scale, 34)
    ]
    return element("g", Markup("".join(marks)), class_="axis")


def y_axis(scale: Scale, left: float, right: float, show: Callable[[float], str], *, count: int) -> Markup:
    """Grid lines from left to right with their values on the left."""
    marks = [
        line(left, scale(v), right, scale(v), "grid") + text(left - 8, scale(v) + 4, show(v), anchor="end")
        for v in scale.ticks(count)
    ]
    return element("g", Markup("".join(marks)), class_="axis")


def _apart(values: Sequence[float], scale: Scale, least: float) -> list[float]:
    """Those values whose labels do not run into the one before."""
    kept: list[float] = []
    for value in values:
        if not kept or abs(scale(value) - scale(kept[-1])) >= least:
            kept.append(value)
    return kept


def plain(value: float) -> str:
    """A tick's value without superfluous zeros."""
    return f"{value:.6g}"
