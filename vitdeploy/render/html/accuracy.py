"""The section on accuracy: the drop of every metric, with its interval and the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vitdeploy.evidence import Eval, Metric
from vitdeploy.render import numbers
from vitdeploy.render.html import flips, svg
from vitdeploy.render.html.markup import Markup, element
from vitdeploy.render.html.parts import Figure, Section, Table
from vitdeploy.render.html.subject import Subject
from vitdeploy.render.html.svg import Scale

_ROW = 46


def section(subject: Subject) -> Section:
    """Compare the accuracy of both sides on the same samples."""
    title, evaluation = "Accuracy", subject.evaluation
    if evaluation is None or not evaluation.metrics or not evaluation.n:
        return Section("accuracy", title, missing=subject.find_gap("eval"))
    doubts = []
    if subject.manifest.model.weights == "random":
        doubts.append("random weights: accuracy means nothing")
    doubts += evaluation.doubts
    if evaluation.nonfinite:
        doubts.append(f"{evaluation.nonfinite:,} of {evaluation.n:,} samples gave NaN or infinity")
    if evaluation.skipped:
        doubts.append(f"{evaluation.skipped:,} samples could not be read and were skipped")
    limit = subject.manifest.recipe.gate.max_drop_pp
    comparable = _comparable(evaluation.metrics)
    figures = (_chart(comparable, limit),) if comparable else ()
    parts = (*figures, _table(evaluation), *flips.parts(subject))
    return Section("accuracy", title, lede=_lede(evaluation), doubts=tuple(doubts), parts=parts)


def _lede(evaluation: Eval) -> str:
    name, metric = next(iter(evaluation.metrics.items()))
    data = f" of {evaluation.data}" if evaluation.data else ""
    change = f"{numbers.metric(name)} went from {metric.reference:.2f} to {metric.deployed:.2f}"
    return (
        f"On {evaluation.n:,} samples{data}, {change}. "
        f"With 95 % confidence, it is at most {metric.upper95:.2f} {metric.unit} worse. "
        f"{100 * evaluation.agreement:.2f} % of the predictions are the same."
    )


def _comparable(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return the finite metrics with the unit of the first one, so that one axis fits all."""
    unit = next(iter(metrics.values())).unit
    return {name: m for name, m in metrics.items() if m.unit == unit and all(map(math.isfinite, (m.drop, *m.ci95)))}


def _table(evaluation: Eval) -> Table:
    head = ("", "FP32", "artifact", "drop, 95 % interval", "drop at most, 95 %", "unit")
    rows = tuple(
        (numbers.metric(name), f"{m.reference:.2f}", f"{m.deployed:.2f}", numbers.drop(m), f"{m.upper95:.2f}", m.unit)
        for name, m in evaluation.metrics.items()
    )
    return Table(head, rows, numeric=frozenset(range(1, 5)))


def _chart(metrics: Mapping[str, Metric], limit: float | None) -> Figure:
    unit = next(iter(metrics.values())).unit
    ends = [end for m in metrics.values() for end in m.ci95]
    limit = limit if unit == "points" else None
    low, high = min(0.0, *ends), max(0.0, *ends, limit or 0.0)
    pad = 0.06 * ((high - low) or 1.0)

    def draw(width: int) -> Markup:
        x = Scale(low - pad, high + pad, 12, width - 12)
        bottom = 14 + _ROW * len(metrics)
        rows = [_interval(numbers.metric(name), m, x, 14 + _ROW * n) for n, (name, m) in enumerate(metrics.items())]
        marks = [svg.line(x(0), 8, x(0), bottom, "zero")]
        if limit is not None:
            marks += [
                svg.line(x(limit), 8, x(limit), bottom, "limit"),
                svg.text(x(limit) - 6, bottom - 6, f"limit {limit:g}", class_="limit", anchor="end"),
            ]
        axis = svg.x_axis(x, 8, bottom, svg.plain, count=8 if width > svg.NARROW else 5)
        name = svg.text(width - 12, bottom + 34, f"drop in {unit} (right of 0 is worse)", anchor="end", class_="quiet")
        return svg.canvas(width, bottom + 42, axis, *marks, *rows, name, label="Drop of each metric")

    return svg.figure(draw, "The drop of each metric against FP32 on the same samples, with its 95 % interval.")


def _interval(name: str, metric: Metric, x: Scale, top: float) -> Markup:
    low, high = metric.ci95
    y = top + 30
    return element(
        "g", svg.text(x.start, top + 14, name, class_="strong"), svg.line(x(low), y, x(high), y, "range"),
        element("circle", cx=x(metric.drop), cy=y, r=4.5, class_="dot"), class_="series s1",
    )  # fmt: skip
