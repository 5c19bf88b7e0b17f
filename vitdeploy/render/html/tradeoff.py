"""The section on speed against accuracy, with the frontier of the best artifacts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitdeploy.evidence import Metric
from vitdeploy.measure.baseline import describe_timing
from vitdeploy.render import numbers
from vitdeploy.render.html import svg
from vitdeploy.render.html.markup import Markup, element, join
from vitdeploy.render.html.parts import Figure, Missing, Section, Table
from vitdeploy.render.html.subject import Subject
from vitdeploy.render.html.svg import Scale

_REFERENCE = "FP32 reference"


@dataclass(frozen=True)
class Point:
    """One artifact: speed-up and drop with their 95 % intervals, and the reason to doubt them if there is one."""

    number: int
    name: str
    speed: float
    speed_ci: tuple[float, float]
    drop: float
    drop_ci: tuple[float, float]
    doubt: str = ""


def section(subjects: Sequence[Subject]) -> Section:
    """Show the speed-up over FP32 against the drop of the first metric.

    These are speed-ups, not latencies: each was measured in turns with its own reference, so the speed-ups of separate
    measurements can be compared.
    """
    title = "Speed against accuracy"
    points, left_out = make_points(subjects)
    if not points:
        name, gap = next(iter(left_out.items()))
        return Section("tradeoff", title, missing=Missing(f"{name}: {gap.why}", gap.fix))
    metric, unit = _metric(subjects)
    rows = [("0", _REFERENCE, "1", "0", "reference")]
    best = find_frontier(points)
    for point in points:
        low, high = point.speed_ci
        speed = f"{point.speed:.2f} [{low:.2f}, {high:.2f}]"
        drop = f"{point.drop:.2f} [{point.drop_ci[0]:.2f}, {point.drop_ci[1]:.2f}]"
        place = "in doubt" if point.doubt else "yes" if point in best else "no"
        rows.append((str(point.number), point.name, speed, drop, place))
    head = ("", "artifact", "speed-up, 95 % interval", f"{metric} drop ({unit}), 95 % interval", "on the frontier")
    table = Table(head, tuple(rows), numeric=frozenset({2, 3}))
    notes = tuple(f"{name} is not drawn: {gap.why}" for name, gap in left_out.items())
    notes += tuple(f"{point.name} is drawn hollow: {point.doubt}" for point in points if point.doubt)
    lede = _lede(points, best, metric, unit)
    return Section("tradeoff", title, lede=lede, doubts=notes, parts=(_chart(points, best, metric, unit), table))


def make_points(subjects: Sequence[Subject]) -> tuple[list[Point], dict[str, Missing]]:
    """Return the artifacts that can be drawn, and for each other name the reason why not."""
    points: list[Point] = []
    left_out: dict[str, Missing] = {}
    for number, subject in enumerate(subjects, 1):
        run, first = subject.run, _first_metric(subject)
        gap = _find_gap(subject) or _find_mismatch(subject, subjects[0])
        if gap is not None or run is None or run.speedup is None or first is None:
            left_out[subject.name] = gap or subject.find_gap("bench")
            continue
        metric = first[1]
        speed, doubt = run.speedup, _find_doubt(subject)
        points.append(Point(number, subject.name, speed.ratio, speed.ci95, metric.drop, metric.ci95, doubt))
    return points, left_out


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


def _find_mismatch(subject: Subject, first: Subject) -> Missing | None:
    """Return why a subject cannot be compared with the first one; None if it can."""
    benches, evaluations = (subject.bench, first.bench), (subject.evaluation, first.evaluation)
    again = f"vitdeploy bench {subject.folder}"
    if subject.manifest.model.digest != first.manifest.model.digest:
        return Missing("it is made of another model", "Compare artifacts of one model.")
    if all(benches) and len({bench.machine for bench in benches if bench is not None}) > 1:
        return Missing("it was timed on another machine", again)
    if all(benches) and len({describe_timing(bench) for bench in benches if bench is not None}) > 1:
        return Missing("it was timed with another reference, batch size, number of threads or scenario", again)
    if all(evaluations) and len({result.data_digest for result in evaluations if result is not None}) > 1:
        return Missing("it was evaluated on other data", f"vitdeploy eval {subject.folder}")
    return None


def _first_metric(subject: Subject) -> tuple[str, Metric] | None:
    """Return the first metric with its name; gates judge this one."""
    return next(iter(subject.evaluation.metrics.items()), None) if subject.evaluation is not None else None


def _metric(subjects: Sequence[Subject]) -> tuple[str, str]:
    name, metric = next(first for subject in subjects if (first := _first_metric(subject)) is not None)
    return numbers.metric(name), metric.unit


def find_frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points without a doubt that nothing, FP32 included, beats on both axes; slowest first."""
    best: list[Point] = []
    for point in sorted((p for p in points if not p.doubt), key=lambda p: (-p.speed, p.drop)):
        if point.drop < min((p.drop for p in best), default=math.inf) and (point.speed > 1 or point.drop < 0):
            best.append(point)
    return best[::-1]


def _lede(points: Sequence[Point], best: Sequence[Point], metric: str, unit: str) -> str:
    if not best and any(point.doubt for point in points):
        return "The figures are in doubt, so no artifact here is known to be faster or more accurate than FP32."
    if not best:
        return "No artifact here is faster or more accurate than FP32."
    fastest = best[-1]
    loss = f"a {metric} drop of {fastest.drop:.2f} {unit}"
    lede = f"{fastest.name} is the fastest: {fastest.speed:.2f} times as fast as FP32, with {loss}."
    beaten = len(points) - len(best)
    others = f" Artifacts that are beaten on both speed and accuracy: {beaten} of {len(points)}."
    return lede + (others if beaten else "")


def _chart(points: Sequence[Point], best: Sequence[Point], metric: str, unit: str) -> Figure:
    fastest = max(1.0, *(p.speed_ci[1] for p in points))
    slowest = min(1.0, *(p.speed_ci[0] for p in points))
    worst, least = max(0.0, *(p.drop_ci[1] for p in points)), min(0.0, *(p.drop_ci[0] for p in points))
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
        marks = [_mark(point, x, y, on=point in best) for point in points]
        origin = _badge(x(1.0), y(0.0), "0", "ref")
        return svg.canvas(width, height, *grid, _steps(best, x, y), origin, *marks, label="Speed-up against accuracy")

    caption = (
        "Up and to the right is better. The bars are 95 % intervals. The line is the frontier: it joins the artifacts "
        "that no other one beats on both speed and accuracy. Where bars overlap, the order may be by chance."
    )
    return svg.figure(draw, caption)


def _steps(best: Sequence[Point], x: Scale, y: Scale) -> Markup:
    """Draw the frontier as steps, from FP32 on."""
    corners = [(x(1.0), y(0.0))] if not best or best[0].drop > 0 or best[0].speed < 1 else []
    for point in best:
        if corners:
            corners.append((corners[-1][0], y(point.drop)) if point.speed < 1 else (x(point.speed), corners[-1][1]))
        corners.append((x(point.speed), y(point.drop)))
    return svg.path(corners, "frontier") if len(corners) > 1 else Markup("")


def _mark(point: Point, x: Scale, y: Scale, *, on: bool) -> Markup:
    cx, cy = x(point.speed), y(point.drop)
    bars = (
        svg.line(x(point.speed_ci[0]), cy, x(point.speed_ci[1]), cy, "whisker"),
        svg.line(cx, y(point.drop_ci[0]), cx, y(point.drop_ci[1]), "whisker"),
    )
    kind = "doubt" if point.doubt else "on" if on else "off"
    return element("g", element("title", point.name), *bars, _badge(cx, cy, str(point.number), kind))


def _badge(cx: float, cy: float, content: str, class_: str) -> Markup:
    circle = element("circle", cx=cx, cy=cy, r=9)
    return element("g", join(circle, svg.text(cx, cy + 4, content, anchor="middle")), class_=f"badge {class_}")
