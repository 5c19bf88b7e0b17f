"""The section on speed against accuracy: the artifact beside FP32."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitdeploy.evidence import Metric
from vitdeploy.render import numbers
from vitdeploy.render.html import svg
from vitdeploy.render.html.markup import Markup, element, join
from vitdeploy.render.html.parts import Figure, Missing, Section, Table
from vitdeploy.render.html.subject import Subject
from vitdeploy.render.html.svg import Scale

_REFERENCE = "FP32 reference"


@dataclass(frozen=True)
class Point:
    """An artifact: speed-up and drop with their 95 % intervals, and the reason to doubt them if there is one."""

    name: str
    speed: float
    speed_ci: tuple[float, float]
    drop: float
    drop_ci: tuple[float, float]
    doubt: str = ""

    @property
    def unbeaten(self) -> bool:
        """True if there is no doubt, and FP32 does not beat it on both axes."""
        return not self.doubt and (self.speed > 1 or self.drop < 0)


def section(subject: Subject) -> Section:
    """Show the speed-up over FP32 against the drop of the first metric."""
    title = "Speed against accuracy"
    first, run = _first_metric(subject), subject.run
    gap = _find_gap(subject)
    if gap is not None or first is None or run is None or run.speedup is None:
        return Section("tradeoff", title, missing=gap or subject.find_gap("bench"))
    name, metric = numbers.metric(first[0]), first[1]
    point = Point(
        subject.name, run.speedup.ratio, run.speedup.ci95, metric.drop, metric.ci95, doubt=_find_doubt(subject)
    )
    (low, high), (least, most) = point.speed_ci, point.drop_ci
    speed, drop = f"{point.speed:.2f} [{low:.2f}, {high:.2f}]", f"{point.drop:.2f} [{least:.2f}, {most:.2f}]"
    place = "in doubt" if point.doubt else "no" if point.unbeaten else "yes"
    head = ("", "artifact", "speed-up, 95 % interval", f"{name} drop ({metric.unit}), 95 % interval", "FP32 beats it")
    rows = (("0", _REFERENCE, "1", "0", "reference"), ("1", point.name, speed, drop, place))
    notes = (f"{point.name} is drawn hollow: {point.doubt}",) if point.doubt else ()
    parts = (_chart(point, name, metric.unit), Table(head, rows, numeric=frozenset({2, 3})))
    return Section("tradeoff", title, lede=_describe(point, name, metric.unit), doubts=notes, parts=parts)


def _find_gap(subject: Subject) -> Missing | None:
    """Return why a subject cannot be drawn, and what to do; None if it can."""
    bench, first, run = subject.bench, _first_metric(subject), subject.run
    again = f"vitdeploy bench {subject.folder}"
    if bench is None or run is None:
        return subject.find_gap("bench")
    if first is None:
        return subject.find_gap("eval")
    if subject.manifest.model.weights == "random":
        return Missing("random weights: accuracy means nothing", "Export it with trained weights.")
    if run.speedup is None:
        return Missing("no FP32 reference was timed beside it", again)
    if bench.reference is not None and bench.reference.manifest:
        return Missing("it was timed against another artifact, not against FP32", again)
    metric = first[1]
    if not all(map(math.isfinite, (metric.drop, *metric.ci95, run.speedup.ratio, *run.speedup.ci95))):
        return Missing("its figures are not finite", f"vitdeploy inspect {subject.folder}")
    return None


def _find_doubt(subject: Subject) -> str:
    """Return the reason to doubt the figures of a subject; empty if there is none."""
    bench, evaluation = subject.bench, subject.evaluation
    if bench is not None and not bench.valid:
        return f"its latencies are in doubt: {'; '.join(bench.doubts) or 'no reason was recorded'}"
    if evaluation is not None and evaluation.doubts:
        return f"its accuracy is in doubt: {evaluation.doubts[0]}"
    return ""


def _first_metric(subject: Subject) -> tuple[str, Metric] | None:
    """Return the first metric with its name; gates judge this one."""
    return next(iter(subject.evaluation.metrics.items()), None) if subject.evaluation is not None else None


def _describe(point: Point, metric: str, unit: str) -> str:
    if point.doubt:
        return "The figures are in doubt, so the artifact is not known to be faster or more accurate than FP32."
    if not point.unbeaten:
        return "The artifact is neither faster nor more accurate than FP32."
    loss = f"a {metric} drop of {point.drop:.2f} {unit}"
    return f"{point.name} is {point.speed:.2f} times as fast as FP32, with {loss}."


def _chart(point: Point, metric: str, unit: str) -> Figure:
    fastest, slowest = max(1.0, point.speed_ci[1]), min(1.0, point.speed_ci[0])
    worst, least = max(0.0, point.drop_ci[1]), min(0.0, point.drop_ci[0])
    room = 0.12 * ((worst - least) or 1.0)

    def draw(width: int) -> Markup:
        height = 300
        pad = 0.07 * (fastest - slowest or 1.0)
        x = Scale(max(slowest - pad, 0), fastest + pad, 56, width - 18)
        y = Scale(least - room, worst + room, 24, height - 44)  # less lost is further up
        grid = (
            svg.y_axis(y, x.start, x.end, lambda v: svg.plain(-v + 0.0), count=5),
            svg.x_axis(x, y.start, y.end, lambda v: f"{svg.plain(v)}×", count=8 if width > svg.NARROW else 4),
            svg.text(x.end, height - 6, "speed-up over FP32 →", class_="quiet", anchor="end"),
            svg.text(x.start - 44, 12, f"↑ {metric} against FP32 ({unit})", class_="quiet"),
        )
        marks = (_line(point, x, y), _badge(x(1.0), y(0.0), "0", "ref"), _mark(point, x, y))
        return svg.canvas(width, height, *grid, *marks, label="Speed-up against accuracy")

    caption = (
        "Up and to the right is better. The bars are 95 % intervals. A line from FP32 to the artifact says that one is "
        "faster and the other more accurate. Where a bar reaches FP32, the order may be by chance."
    )
    return svg.figure(draw, caption)


def _line(point: Point, x: Scale, y: Scale) -> Markup:
    """Draw a step from FP32 to the artifact if neither beats the other."""
    fp32, end = (x(1.0), y(0.0)), (x(point.speed), y(point.drop))
    if not point.unbeaten or (point.drop <= 0 and point.speed >= 1):
        return Markup("")
    corner = (fp32[0], end[1]) if point.speed < 1 else (end[0], fp32[1])
    return svg.path([fp32, corner, end], "frontier")


def _mark(point: Point, x: Scale, y: Scale) -> Markup:
    cx, cy = x(point.speed), y(point.drop)
    bars = (
        svg.line(x(point.speed_ci[0]), cy, x(point.speed_ci[1]), cy, "whisker"),
        svg.line(cx, y(point.drop_ci[0]), cx, y(point.drop_ci[1]), "whisker"),
    )
    kind = "doubt" if point.doubt else "on" if point.unbeaten else "off"
    return element("g", element("title", point.name), *bars, _badge(cx, cy, "1", kind))


def _badge(cx: float, cy: float, content: str, class_: str) -> Markup:
    circle = element("circle", cx=cx, cy=cy, r=9)
    return element("g", join(circle, svg.text(cx, cy + 4, content, anchor="middle")), class_=f"badge {class_}")
