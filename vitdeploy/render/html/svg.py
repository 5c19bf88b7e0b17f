"""Scales, ticks and axes of charts. Colours are CSS classes, so that the theme of the page applies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vitdeploy.render.html.markup import Markup, element
from vitdeploy.render.html.parts import Figure

WIDE, NARROW = 720, 344
"""Widths of a chart for a wide screen and for a phone. The wide one, scaled down, would be too small to read."""

_NICE = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Scale:
    """Map values between `low` and `high` to pixels between `start` and `end`, on a logarithmic scale if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value. A value beyond an end gives the pixel of that end."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, max(value, self.least)))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    @property
    def least(self) -> float:
        """The least value that has a place on the scale: a logarithm needs values above 0."""
        return self.low if self.log else -math.inf

    def ticks(self, count: int) -> list[float]:
        """Return about `count` round values."""
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
    """Draw a chart in both widths. The caption says what it shows, also to screen readers."""
    return Figure(wide=draw(WIDE), narrow=draw(NARROW), caption=caption)


def canvas(width: float, height: float, *children: str, label: str) -> Markup:
    """Return an `<svg>` that is as wide as the page allows, up to the width it was drawn for."""
    return element(
        "svg", element("title", label), *children,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:g} {height:g}", width=width, height=height, role="img",
    )  # fmt: skip


def text(x: float, y: float, content: str, *, class_: str = "", anchor: str | None = None) -> Markup:
    """Draw a line of text with its baseline at `y`."""
    return element("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Draw a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str, *, closed: bool = False) -> Markup:
    """Draw a line through points; `closed`, the area within."""
    corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", d=f"M{corners}{'Z' if closed else ''}", class_=class_)


def x_axis(scale: Scale, top: float, bottom: float, show: Callable[[float], str], *, count: int) -> Markup:
    """Draw grid lines from top to bottom, with their values below."""
    marks = [
        line(scale(v), top, scale(v), bottom, "grid") + text(scale(v), bottom + 16, show(v), anchor="middle")
        for v in _space_out(scale.ticks(count), scale, 34)
    ]
    return element("g", Markup("".join(marks)), class_="axis")


def y_axis(scale: Scale, left: float, right: float, show: Callable[[float], str], *, count: int) -> Markup:
    """Draw grid lines from left to right, with their values on the left."""
    marks = [
        line(left, scale(v), right, scale(v), "grid") + text(left - 8, scale(v) + 4, show(v), anchor="end")
        for v in scale.ticks(count)
    ]
    return element("g", Markup("".join(marks)), class_="axis")


def _space_out(values: Sequence[float], scale: Scale, distance: float) -> list[float]:
    """Return the values that lie at least `distance` pixels apart, so that their labels do not overlap."""
    spaced: list[float] = []
    for value in values:
        if not spaced or abs(scale(value) - scale(spaced[-1])) >= distance:
            spaced.append(value)
    return spaced


def plain(value: float) -> str:
    """Format the value of a tick, without trailing zeros."""
    return f"{value:.6g}"
