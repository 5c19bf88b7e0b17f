"""Latency as tables for a terminal; they are right at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from vitdeploy.evidence import Bench, Profile
from vitdeploy.render import numbers
from vitdeploy.render.numbers import NOTHING, three_digits
from vitdeploy.render.tables import noted, table_of

_SHOWN_OPERATORS = 10


def bench(found: Bench) -> list[Table]:
    """Latencies, then what the artifacts cost, then profiles."""
    shown = [latencies(found)]
    if any(run.startup or run.size_bytes for run in found.runs):
        shown.append(costs(found))
    return [*shown, *(profile(one) for one in found.profiles)]


def latencies(found: Bench) -> Table:
    """Side by side; the first run of a batch size is the reference. `peak`: the share of this host's peak."""
    table = table_of(
        f"Latency, {numbers.asked(found) if found.runs else 'nothing timed'}",
        "", "p50 ms", "p90 ms", "p99 ms", "images/s", "peak", "speed-up, 95 %",
    )  # fmt: skip
    table.padding = (0, 1, 0, 0)
    for run in found.runs:
        figures = (three_digits(ms) for ms in (run.p50_ms, run.p90_ms, run.p99_ms, run.throughput_ips))
        compared = "reference" if numbers.is_reference(run, found) else numbers.speedup(run.speedup)
        name = escape(numbers.run_name(run, found.runs))
        table.add_row(name, *figures, numbers.efficiency(run.efficiency_pct), compared)
    return noted(table, [*_pairs(found), *_notes(found)])


def costs(found: Bench) -> Table:
    """Start-up, memory and size of what is deployed."""
    table = table_of("Start-up", "", "load ms", "first ms", "peak memory", "of it the model", "files")
    table.padding = (0, 1, 0, 0)
    batch = found.runs[0].batch  # a sweep starts each of them once
    for run in found.runs:
        if run.batch != batch or (run.startup is None and run.size_bytes is None):
            continue
        start = run.startup
        times = (three_digits(start.load_ms), three_digits(start.first_ms)) if start else (NOTHING, NOTHING)
        peak = start.peak_bytes if start else None
        model = peak - start.engine_bytes if start and peak and start.engine_bytes else None
        sizes = (numbers.size(b) if b is not None else NOTHING for b in (peak, model, run.size_bytes))
        table.add_row(escape(run.name), *times, *sizes)
    return table


def profile(found: Profile) -> Table:
    """Where the time goes: by part of the model, then the longest operators."""
    title = f"{escape(found.name)}: {three_digits(found.total_ms)} ms a run by its engine's counters"
    table = table_of(title, "", "ms", "share")
    for role, ms in found.roles.items():
        table.add_row(role, three_digits(ms), numbers.share(ms, found.total_ms))
    if found.between_ms:
        table.add_row(numbers.BETWEEN, three_digits(found.between_ms), numbers.share(found.between_ms, found.total_ms))
    table.add_section()
    for operator in found.operators[:_SHOWN_OPERATORS]:
        table.add_row(
            escape(f"{operator.name}  {operator.kind}"),
            three_digits(operator.ms),
            numbers.share(operator.ms, found.total_ms),
        )
    return table


def _notes(found: Bench) -> Iterator[str]:
    roof = found.roofline
    if roof is not None and roof.peaks:
        told = ", ".join(f"{kind} {peak.gops:,.0f}" for kind, peak in sorted(roof.peaks.items()))
        work = sum(roof.operations.values()) / 1e9
        yield f"peak of {roof.threads} threads in 10⁹ operations/s: {told}; the model: {three_digits(work)} an image"
    yield from (numbers.device_time(told) for told in found.device)
    if found.power is not None:
        yield numbers.power(found.power)
    yield from (f"in doubt: {doubt}" for doubt in found.doubts)


def _pairs(found: Bench) -> Iterator[str]:
    several = len({run.batch for run in found.runs}) > 1
    for pair in found.pairs:
        at = f" @ {pair.batch}" if several else ""
        yield f"{pair.name} over {pair.over}{at}: {numbers.speedup(pair.speedup)}"
