"""Latency as tables for a terminal; they fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vitdeploy.escaping import of_escaped
from vitdeploy.evidence import Bench, EndToEnd, Profile, Sustained
from vitdeploy.render import numbers
from vitdeploy.render.names import fold_name
from vitdeploy.render.numbers import NOTHING, three_digits
from vitdeploy.render.tables import add_notes, make_table

_SHOWN_OPERATORS = 10
_NAME_WIDTH = 16  # seven columns of figures leave it of 80


@of_escaped
def bench(result: Bench, limit_ms: float | None = None) -> list[RenderableType]:
    """Return tables of latencies, then of start-up and size, then of profiles.

    Args:
        result: the measurement.
        limit_ms: the largest latency that the recipe allows, beside which times on a device are shown.
    """
    tables: list[RenderableType] = [latencies(result)]
    if limit_ms is not None and result.device:
        tables.append(against_limit(result, limit_ms))
    if result.sustained is not None:
        tables.append(sustained(result.sustained))
    if result.end_to_end is not None:
        tables.append(end_to_end(result.end_to_end))
    if any(run.startup or run.size_bytes for run in result.runs):
        tables.append(costs(result))
    return [*tables, *(profile(one) for one in result.profiles)]


@of_escaped
def family(parts: Mapping[str, Bench], pair: Bench) -> list[RenderableType]:
    """Return the tables of each part of a family, then of one image with one prompt through both."""
    tables: list[RenderableType] = []
    for name, result in parts.items():
        tables += [Text(name, style="bold"), *bench(result)]
    return [*tables, Text("one image with one prompt: both in turn", style="bold"), latencies(pair)]


@of_escaped
def latencies(bench: Bench) -> RenderableType:
    """Return latencies side by side; the first run of each batch size is the reference. `peak` is the efficiency."""
    table = make_table(
        f"Latency, {numbers.batches(bench) if bench.runs else 'nothing timed'}",
        "", "p50 ms", "p90 ms", "p99 ms", "images/s", "peak", "speed-up, 95 %",
    )  # fmt: skip
    table.padding = (0, 1, 0, 0)
    for run in bench.runs:
        figures = (three_digits(ms) for ms in (run.p50_ms, run.p90_ms, run.p99_ms, run.throughput_ips))
        speedup = "reference" if numbers.is_reference(run, bench) else numbers.speedup(run.speedup)
        name = fold_name(numbers.run_name(run, bench.runs), _NAME_WIDTH)
        table.add_row(name, *figures, numbers.efficiency(run.efficiency_pct), speedup)
    return add_notes(table, [*_pairs(bench), *_notes(bench)])


@of_escaped
def end_to_end(timed: EndToEnd) -> RenderableType:
    """Return what a caller waits for, with the share of each stage."""
    table = make_table(f"From an encoded image to the answer, on {timed.images}", "", "p50 ms", "share")
    for stage in timed.stages:
        table.add_row(stage.name, three_digits(stage.median_ms), f"{stage.share_pct:.0f} %")
    table.add_section()
    low, high = timed.p50_ci95
    table.add_row("all", three_digits(timed.p50_ms), "100 %")
    interval = f"p50 {three_digits(low)} to {three_digits(high)} ms with 95 % confidence"
    return add_notes(table, [f"{interval}; p90 {three_digits(timed.p90_ms)}, p99 {three_digits(timed.p99_ms)} ms"])


@of_escaped
def against_limit(bench: Bench, limit_ms: float) -> RenderableType:
    """Return median times on the device and end to end, each against the limit of the recipe."""
    table = make_table(f"Against the limit of {three_digits(limit_ms)} ms", "", "p50 ms", "limit")
    for time in bench.device:
        for place, ms in (("on the device", time.device_p50_ms), ("end to end", time.end_to_end_p50_ms)):
            name = f"{fold_name(time.name, _NAME_WIDTH)}, {place}"
            table.add_row(name, three_digits(ms), "within" if ms <= limit_ms else "above")
    return add_notes(table, ["medians without their intervals: vitdeploy gate --max-latency judges the latency"])


@of_escaped
def sustained(run: Sustained) -> RenderableType:
    """Return the latency when it was cold and when it was steady, with temperature, clocks and energy."""
    first, last = run.course[0], run.course[-1]
    table = make_table("Sustained load", "", "cold", "steady" if run.steady else "at the end")
    rows: list[tuple[str, float | None, float | None]] = [
        ("p50 ms", first.p50_ms, run.p50_ms),
        ("temperature °C", first.celsius, last.celsius),
        ("CPU clock MHz", first.state.mhz, last.state.mhz),
        ("GPU clock MHz", first.gpu_mhz, last.gpu_mhz),
        ("after minutes", first.minutes, last.minutes),
    ]
    for name, *values in rows:
        if values != [None, None]:
            table.add_row(name, *(NOTHING if value is None else three_digits(value) for value in values))
    low, high = run.p50_ci95
    notes = [f"p50 {three_digits(low)} to {three_digits(high)} ms with 95 % confidence; judged by {run.judged_by}"]
    notes += [*run.findings, *([numbers.power(run.power)] if run.power else [])]
    return add_notes(table, [*notes, *(f"doubt: {doubt}" for doubt in run.doubts)])


@of_escaped
def costs(bench: Bench) -> Table:
    """Return start-up time, memory, and size of the deployed files."""
    table = make_table("Start-up and size", "", "load ms", "first ms", "peak memory", "of which model", "files")
    table.padding = (0, 1, 0, 0)
    batch = bench.runs[0].batch  # a sweep over batch sizes starts each artifact once
    for run in bench.runs:
        if run.batch != batch or (run.startup is None and run.size_bytes is None):
            continue
        start = run.startup
        times = (three_digits(start.load_ms), three_digits(start.first_ms)) if start else (NOTHING, NOTHING)
        peak = start.peak_bytes if start else None
        model = peak - start.engine_bytes if start and peak and start.engine_bytes else None
        sizes = (numbers.size(b) if b is not None else NOTHING for b in (peak, model, run.size_bytes))
        table.add_row(fold_name(run.name, _NAME_WIDTH), *times, *sizes)
    return table


@of_escaped
def profile(profile: Profile) -> Table:
    """Return the time of one run by part of the model, then its slowest operators."""
    total_ms = profile.total_ms
    title = f"{profile.name}: {three_digits(total_ms)} ms a run, by the engine's own counters"
    table = make_table(title, "", "ms", "share")
    for role, ms in profile.roles.items():
        table.add_row(role, three_digits(ms), numbers.share(ms, total_ms))
    if profile.between_ms:
        table.add_row(numbers.BETWEEN, three_digits(profile.between_ms), numbers.share(profile.between_ms, total_ms))
    table.add_section()
    for operator in profile.operators[:_SHOWN_OPERATORS]:
        name = f"{operator.name}  {operator.kind}"
        table.add_row(name, three_digits(operator.ms), numbers.share(operator.ms, total_ms))
    return table


def _notes(bench: Bench) -> Iterator[str]:
    if bench.setting is not None:
        yield f"{bench.scenario} with the setting that --tune-streams stored: {bench.setting}"
    roof = bench.roofline
    if roof is not None and roof.peaks:
        peaks = ", ".join(f"{kind} {peak.gops:,.0f}" for kind, peak in sorted(roof.peaks.items()))
        work = sum(roof.operations.values()) / 1e9
        yield f"peak: share of the measured peak of {roof.threads} threads ({peaks} × 10⁹ operations a second)"
        yield f"the model needs {three_digits(work)} × 10⁹ operations an image"
    yield from (numbers.device_time(time) for time in bench.device)
    if bench.power is not None:
        yield numbers.power(bench.power)
    yield from (f"doubt: {doubt}" for doubt in bench.doubts)


def _pairs(bench: Bench) -> Iterator[str]:
    is_sweep = len({run.batch for run in bench.runs}) > 1
    for pair in bench.pairs:
        batch = f" @ {pair.batch}" if is_sweep else ""
        yield f"{pair.name} over {pair.over}{batch}: {numbers.speedup(pair.speedup)} times as fast"
