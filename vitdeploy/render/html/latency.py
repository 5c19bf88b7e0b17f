"""The section on latency: the distribution of each side's samples, and the speed-up in each block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitdeploy.evidence import Bench, Run, Sustained
from vitdeploy.measure.statistics import block_log_ratios
from vitdeploy.render import numbers
from vitdeploy.render.html import profile, svg
from vitdeploy.render.html.markup import Markup, element, join
from vitdeploy.render.html.parts import Figure, Part, Section, Table
from vitdeploy.render.html.subject import Subject
from vitdeploy.render.html.svg import Scale
from vitdeploy.render.numbers import three_digits
from vitdeploy.session import Array

_BINS = 240
_LOG_ABOVE = 8.0  # ratio of medians above which the axis is logarithmic: the faster side would be too narrow to see
_TAIL = 1.15  # the axis ends at this many times the largest p99; the caption counts the samples beyond it
_RIDGE = 62  # height of one distribution
_LEAST_SPAN = 0.05  # of the ratio: a smaller span of the axis would make a steady measurement look noisy


def section(subject: Subject) -> Section:
    """Show the latencies of everything that was timed in turns."""
    title, bench = "Latency", subject.bench
    if bench is None or not bench.runs:
        return Section("latency", title, missing=subject.find_gap("bench"))
    parts: list[Part] = [_table(bench)]
    if bench.sustained is not None:
        parts.append(_sustained_table(bench.sustained))
    if bench.roofline is not None and any(run.efficiency_pct is not None for run in bench.runs):
        parts.append(profile.peaks(bench.roofline))
    parts += profile.parts(bench)
    sampled = [run for run in bench.runs if len(samples_of(run))]
    figures = [_distributions(sampled)] if sampled else []
    reference, run = subject.reference, subject.run
    if reference is not None and run is not None and (ratios := _ratios(reference, run)):
        figures.append(ratios)
    doubts = list(bench.doubts)
    if not sampled:
        doubts.append("bench.json has no raw samples, so their distribution cannot be shown")
    return Section("latency", title, lede=_lede(subject), doubts=tuple(doubts), parts=(*figures, *parts))


def _lede(subject: Subject) -> str:
    run, reference = subject.run, subject.reference
    if run is None:
        return ""
    query = f"batch {run.batch}"
    if subject.bench is not None and subject.bench.scenario != "single-stream":
        query += f", a whole query of the {subject.bench.scenario} scenario"
    answers = f"{run.name} answers in {three_digits(run.p50_ms)} ms (median, {query})"
    if reference is None or run.speedup is None:
        return f"{answers}. No FP32 reference was timed beside it, so there is no speed-up."
    low, high = run.speedup.ci95
    return (
        f"{answers}, {reference.name} in {three_digits(reference.p50_ms)} ms: {run.speedup.ratio:.2f} times as fast, "
        f"95 % interval {low:.2f} to {high:.2f}. Both were timed in turns{_on_threads(run)}."
    )


def _on_threads(run: Run) -> str:
    return f" on {run.threads} thread{'s' if run.threads > 1 else ''}" if run.threads else ""


def _table(bench: Bench) -> Table:
    head = ("", "p50 ms", "p90 ms", "p99 ms", "images/s", "of the peak", "speed-up, 95 %", "samples")
    rows = []
    for run in bench.runs:
        latencies = (three_digits(ms) for ms in (run.p50_ms, run.p90_ms, run.p99_ms, run.throughput_ips))
        ratio = "reference" if numbers.is_reference(run, bench) else numbers.speedup(run.speedup)
        name, share = numbers.run_name(run, bench.runs), numbers.efficiency(run.efficiency_pct)
        rows.append((name, *latencies, share, ratio, f"{run.samples:,}"))
    return Table(head, tuple(rows), numeric=frozenset(range(1, len(head))))


def _sustained_table(run: Sustained) -> Table:
    """Show latency, temperature and clocks of a sustained load, cold and at its end, and what it did."""
    first, last = run.course[0], run.course[-1]

    def show(value: float | None) -> str:
        return numbers.NOTHING if value is None else three_digits(value)

    head = ("sustained load", "minutes", "p50 ms", "°C", "CPU MHz", "GPU MHz", "findings")
    name, words = "steady" if run.steady else "not steady", "; ".join((*run.findings, *run.doubts))
    ends = (("cold", first, first.p50_ms, ""), (name, last, run.p50_ms, words))
    rows = tuple(
        (name, *(show(v) for v in (end.minutes, p50, end.celsius, end.state.mhz, end.gpu_mhz)), words)
        for name, end, p50, words in ends
    )
    return Table(head, rows, numeric=frozenset(range(1, len(head) - 1)))


def samples_of(run: Run) -> Array:
    """Return all samples in ms that are finite and above 0."""
    samples = np.array([ms for block in run.blocks for ms in block], np.float64)
    return samples[np.isfinite(samples) & (samples > 0)]


def density(samples: Array, edges: Array) -> Array:
    """Estimate the density of samples in each bin, scaled to a maximum of 1; shape (bins,).

    It is a histogram smoothed by a Gaussian of Silverman's width (1986, Density Estimation, eq. 3.31). The width is
    measured in bins, so with logarithmic bins it is the density of the logarithm.
    """
    counts, _ = np.histogram(samples, edges)
    if not counts.any():
        return np.zeros(len(edges) - 1)
    at = np.interp(samples, edges, np.arange(len(edges)))
    spread = min(float(at.std()), float(np.subtract(*np.percentile(at, [75, 25]))) / 1.34) or float(at.std())
    width = max(0.9 * spread * len(samples) ** -0.2, 0.6)
    reach = np.arange(-int(4 * width) - 1, int(4 * width) + 2)
    smooth = np.convolve(counts, np.exp(-0.5 * (reach / width) ** 2), mode="full")[len(reach) // 2 :][: len(counts)]
    return np.asarray(smooth / smooth.max())


def _distributions(runs: Sequence[Run]) -> Figure:
    sides = [samples_of(run) for run in runs]
    medians = [float(np.median(samples)) for samples in sides]
    log = max(medians) / min(medians) > _LOG_ABOVE
    high = _TAIL * max(run.p99_ms for run in runs)
    low = 0.8 * min(float(samples.min()) for samples in sides) if log else 0.0
    edges = np.geomspace(low, high, _BINS + 1) if log else np.linspace(low, high, _BINS + 1)
    beyond = sum(int((samples > high).sum()) for samples in sides)
    slowest = max(float(samples.max()) for samples in sides)

    def draw(width: int) -> Markup:
        scale = Scale(low, high, 12, width - 12, log=log)
        rows = [
            _ridge(numbers.run_name(run, runs), run, density(s, edges), edges, scale, n)
            for n, (run, s) in enumerate(zip(runs, sides, strict=True))
        ]
        bottom = len(runs) * (_RIDGE + 40) + 4
        axis = svg.x_axis(scale, 22, bottom, svg.plain, count=8 if width > svg.NARROW else 5)
        name = svg.text(width - 12, bottom + 34, "ms, logarithmic" if log else "ms", anchor="end", class_="quiet")
        return svg.canvas(width, bottom + 42, axis, name, *rows, label="Distribution of latencies")

    tail = f" {beyond:,} samples lie beyond the axis, the slowest at {three_digits(slowest)} ms." if beyond else ""
    caption = (
        f"The distribution of all samples of each side, with marks at p50, p90 and p99. Heights are relative.{tail}"
    )
    return svg.figure(draw, caption)


def _ridge(name: str, run: Run, heights: Array, edges: Array, scale: Scale, number: int) -> Markup:
    base = number * (_RIDGE + 40) + _RIDGE + 34
    centres = (edges[1:] + edges[:-1]) / 2
    visible = np.flatnonzero(heights > 0.002)
    if len(visible):
        first, last = max(int(visible[0]) - 1, 0), min(int(visible[-1]) + 2, len(heights))
        heights, centres = heights[first:last], centres[first:last]
    curve = [(scale(x), base - _RIDGE * 0.86 * h) for x, h in zip(centres, heights, strict=True)]
    area = [(curve[0][0], base), *curve, (curve[-1][0], base)]
    marks = [
        svg.line(scale(ms), base, scale(ms), base - length, f"mark {percentile}")
        for percentile, ms, length in (("p50", run.p50_ms, _RIDGE), ("p90", run.p90_ms, 20), ("p99", run.p99_ms, 12))
    ]
    figures = f"p50 {three_digits(run.p50_ms)} · p90 {three_digits(run.p90_ms)} · p99 {three_digits(run.p99_ms)} ms"
    label = element(
        "text", element("tspan", name, class_="strong"), "  ", element("tspan", figures, class_="quiet"),
        x=scale.start, y=base - _RIDGE - 8,
    )  # fmt: skip
    return element(
        "g", svg.path(area, "area", closed=True), svg.path(curve, "curve"), *marks,
        svg.line(scale.start, base, scale.end, base, "base"), label, class_=f"series s{min(number, 5)}",
    )  # fmt: skip


def _ratios(reference: Run, run: Run) -> Figure | None:
    """Draw the speed-up in each block; return None if samples are missing or are no times."""
    complete = all(
        side.blocks and all(side.blocks) and len(samples_of(side)) == sum(map(len, side.blocks))
        for side in (reference, run)
    )
    if run.speedup is None or not complete or len(reference.blocks) != len(run.blocks):
        return None
    ratios = np.exp(block_log_ratios(reference.blocks, run.blocks))
    (low, high), middle = run.speedup.ci95, run.speedup.ratio
    bottom = min(float(ratios.min()), low, middle * (1 - _LEAST_SPAN))
    top = max(float(ratios.max()), high, middle * (1 + _LEAST_SPAN))
    pad = 0.08 * (top - bottom)

    def draw(width: int) -> Markup:
        height = 150
        y = Scale(bottom - pad, top + pad, height - 28, 10)
        x = Scale(1, max(len(ratios), 2), 58, width - 16)
        band = element(
            "rect", x=x.start - 6, y=y(high), width=x.end - x.start + 12, height=max(y(low) - y(high), 1), class_="band"
        )
        dots = [element("circle", cx=x(n + 1), cy=y(float(r)), r=2.6, class_="dot") for n, r in enumerate(ratios)]
        parts = (
            svg.y_axis(y, x.start - 6, x.end + 6, lambda v: f"{v:.4g}×", count=4),
            band,
            svg.line(x.start - 6, y(middle), x.end + 6, y(middle), "estimate"),
            join(*dots),
            svg.text(x.start - 6, height - 6, "first block", class_="quiet"),
            svg.text(x.end + 6, height - 6, "last", class_="quiet", anchor="end"),
        )
        return svg.canvas(width, height, element("g", *parts, class_="series s1"), label="Speed-up in each block")

    caption = (
        f"The speed-up in each of {len(ratios)} blocks, in the order taken. The line is the speed-up over all blocks, "
        "the band its 95 % interval."
    )
    return svg.figure(draw, caption)
