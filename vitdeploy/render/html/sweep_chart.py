"""Accuracy against latency: a chart for each metric and data, with the front of each group of trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitdeploy.evidence import SweepRow
from vitdeploy.measure.front import find_front
from vitdeploy.render.html import svg
from vitdeploy.render.html.markup import Markup, element
from vitdeploy.render.html.parts import Figure
from vitdeploy.render.html.svg import Scale

_TONES = 5
_MOST_NUMBERED = 40
"""More points than these get no number: they would cover each other."""
_LOGARITHMIC_FROM = 20.0
"""From this ratio of the slowest to the fastest on, latency is on a logarithmic scale."""


@dataclass(frozen=True)
class Chart:
    """One chart with its legend: tone -> model; and its groups in words."""

    title: str
    figure: Figure
    legend: tuple[tuple[int, str], ...]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class _Point:
    """A trial that has a place in the chart."""

    number: int
    row: SweepRow
    latency: float
    value: float
    latency_ci: tuple[float, float]
    value_ci: tuple[float, float]
    tone: int


def tones(rows: Sequence[SweepRow]) -> Mapping[str, int]:
    """Return the number of the colour of each model."""
    models = dict.fromkeys(row.model for row in rows)
    return {model: place % _TONES + 1 for place, model in enumerate(models)}


def draw_charts(rows: Sequence[SweepRow], numbers: Sequence[int] = (), models: Sequence[SweepRow] = ()) -> list[Chart]:
    """Draw the measured trials: one chart for those whose accuracy can be compared.

    Args:
        rows: the trials.
        numbers: their numbers on the page; by default from 1 on.
        models: all trials of the page, by which models have their colours; by default those that are drawn.
    """
    colours = tones(models or rows)
    points: dict[tuple[str, str, str, str, int], list[_Point]] = {}
    for number, row in zip(numbers or range(1, len(rows) + 1), rows, strict=True):
        if row.group and row.latency_ms is not None and row.deployed is not None:
            key = (row.metric, row.unit, row.better, row.data_digest, row.samples)
            points.setdefault(key, []).append(_place(number, row, row.latency_ms, row.deployed, colours[row.model]))
    return [_draw(metric, unit, better, placed) for (metric, unit, better, *_), placed in points.items()]


def _place(number: int, row: SweepRow, latency: float, value: float, tone: int) -> _Point:
    low, high = row.latency_ci95 or (latency, latency)
    value_ci = (value, value)
    if row.drop_ci95 is not None and row.drop is not None:  # the drop is what is uncertain, not the reference
        sign = -1 if row.better == "higher" else 1
        ends = sorted(value + sign * (end - row.drop) for end in row.drop_ci95)
        value_ci = (ends[0], ends[1])
    return _Point(number, row, latency, value, (low, high), value_ci, tone)


def _draw(metric: str, unit: str, better: str, points: Sequence[_Point]) -> Chart:
    fastest, slowest = min(p.latency_ci[0] for p in points), max(p.latency_ci[1] for p in points)
    lowest, highest = min(p.value_ci[0] for p in points), max(p.value_ci[1] for p in points)
    room = 0.1 * (highest - lowest) or 1.0
    log = fastest > 0 and slowest / fastest > _LOGARITHMIC_FROM
    pad = 0.07 * (slowest - fastest) or 0.1 * slowest
    ends = (fastest / 1.15, slowest * 1.15) if log else (max(fastest - pad, 0.0), slowest + pad)
    groups = sorted({point.row.group for point in points})

    def draw(width: int) -> Markup:
        height = 360
        x = Scale(*ends, 52, width - 16, log=log)
        bottom, top = (height - 46, 26) if better == "higher" else (26, height - 46)
        y = Scale(lowest - room, highest + room, bottom, top)
        upper, lower = min(bottom, top), max(bottom, top)
        grid = (
            svg.y_axis(y, x.start, x.end, svg.plain, count=5),
            svg.x_axis(x, upper, lower, svg.plain, count=7 if width > svg.NARROW else 4),
            svg.text(x.end, height - 8, f"← latency, ms{', logarithmic' if log else ''}", class_="quiet", anchor="end"),
            svg.text(8, 14, f"↑ {metric}{f' ({unit})' if unit else ''}", class_="quiet"),
        )
        fronts = [_front(group, points, x, y) for group in groups]
        marks = [_mark(point, x, y, numbered=len(points) <= _MOST_NUMBERED) for point in points]
        return svg.canvas(width, height, *grid, *fronts, *marks, label=f"{metric} against latency")

    caption = (
        "Up and to the left is better. The bars are 95 % intervals. The line is the front: it joins the trials that "
        "no other one beats on both. Hollow points are in doubt, and on no front. Trials that may not be compared, of "
        "another device or machine or under other conditions, are not joined."
    )
    legend = tuple(dict.fromkeys((point.tone, point.row.model) for point in points))
    words = tuple(dict.fromkeys(_describe_group(point.row) for point in points)) if len(groups) > 1 else ()
    return Chart(f"{metric} and latency", svg.figure(draw, caption), legend, words)


def _describe_group(row: SweepRow) -> str:
    version = f" ({row.reference_version})" if row.reference_version else ""
    return f"group {row.group}: {row.device} of machine {row.machine}, {row.timing}{version}"


def _front(group: int, points: Sequence[_Point], x: Scale, y: Scale) -> Markup:
    """Draw the front of a group as steps. The script of the page draws it again when trials are hidden."""
    by_name = {point.row.name: point for point in points}
    corners: list[tuple[float, float]] = []
    for row in find_front([point.row for point in points if point.row.group == group]):
        point = by_name[row.name]
        if corners:
            corners.append((x(point.latency), corners[-1][1]))
        corners.append((x(point.latency), y(point.value)))
    line = "L".join(f"{cx:.1f} {cy:.1f}" for cx, cy in corners)
    return element("path", d=f"M{line}" if line else "", class_="frontier", data_group=str(group))


def _mark(point: _Point, x: Scale, y: Scale, *, numbered: bool) -> Markup:
    cx, cy, row = x(point.latency), y(point.value), point.row
    kind = "doubt" if row.doubts else "on" if row.front else "off"
    bars = (
        svg.line(x(point.latency_ci[0]), cy, x(point.latency_ci[1]), cy, "whisker"),
        svg.line(cx, y(point.value_ci[0]), cx, y(point.value_ci[1]), "whisker"),
    )
    number = (svg.text(cx, cy + 4, str(point.number), anchor="middle"),) if numbered else ()
    circle = element("circle", cx=cx, cy=cy, r=9 if numbered else 5)
    badge = element("g", circle, *number, class_=f"badge {kind}")
    good = point.value if row.better == "higher" else -point.value
    return element(
        "g", element("title", _describe(point)), *bars, badge,
        class_=f"point s{point.tone}", data_name=row.name, data_group=str(row.group), data_x=f"{cx:.1f}",
        data_y=f"{cy:.1f}", data_latency=repr(point.latency), data_good=repr(good),
        data_valid="yes" if row.valid else "no",
    )  # fmt: skip


def _describe(point: _Point) -> str:
    row = point.row
    return f"{point.number}: {', '.join(row.axes.values())}; {row.metric} {point.value:.4g}, {point.latency:.4g} ms"
