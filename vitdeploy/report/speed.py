"""Latency as tables for a terminal; they are right at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from vitdeploy.evidence import Bench, Pair, Profile, Run
from vitdeploy.report import numbers
from vitdeploy.report.numbers import NOTHING, three_digits
from vitdeploy.report.tables import noted, table_of

_SHOWN_OPERATORS = 10


def bench(found: Bench) -> list[Table]:
    """Latencies, then what the artifacts cost, then profiles."""
    shown = [latencies(found)]
    if any(run.startup or run.size_bytes for run in found.runs):
        shown.append(costs(found))
    return [*shown, *(profile(one) for one in found.profiles)]


def latencies(found: Bench) -> Table:
    """Side by side; the first run of a batch size is the reference. `peak`: the share of this host's peak."""
    several = len({run.batch for run in found.runs}) > 1
    title = f"Latency, {found.scenario}" if several else f"Latency, {_batch(found)}"
    table = table_of(title, "", "p50 ms", "p90 ms", "p99 ms", "images/s", "peak", "speed-up, 95 %")
    table.padding = (0, 1, 0, 0)
    for run in found.runs:
        name = f"{run.name} @ {run.batch}" if several else run.name
        figures = (three_digits(ms) for ms in (run.p50_ms, run.p90_ms, run.p99_ms, run.throughput_ips))
        reference = run.speedup is None and len(found.runs) > 1 and run is _first_of_batch(found, run)
        compared = "reference" if reference else numbers.speedup(run.speedup)
        table.add_row(escape(name), *figures, _efficiency(run), compared)
    return noted(table, [*(_pair(pair) for pair in found.pairs), *_notes(found)])


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
        table.add_row(role, three_digits(ms), _share(ms, found))
    if found.between_ms:
        table.add_row("between operators", three_digits(found.between_ms), _share(found.between_ms, found))
    table.add_section()
    for operator in found.operators[:_SHOWN_OPERATORS]:
        table.add_row(
            escape(f"{operator.name}  {operator.kind}"), three_digits(operator.ms), _share(operator.ms, found)
        )
    return table


def _notes(found: Bench) -> Iterator[str]:
    roof = found.roofline
    if roof is not None and roof.peaks:
        told = ", ".join(f"{kind} {peak.gops:,.0f}" for kind, peak in sorted(roof.peaks.items()))
        work = sum(roof.operations.values()) / 1e9
        yield f"peak of {roof.threads} threads in 10⁹ operations/s: {told}; the model: {work:.2f} an image"
    yield from (numbers.device_time(told) for told in found.device)
    if found.power is not None:
        yield numbers.power(found.power)
    yield from (f"in doubt: {doubt}" for doubt in found.doubts)


def _pair(pair: Pair) -> str:
    return f"{pair.name} over {pair.over}: {numbers.speedup(pair.speedup)}"


def _efficiency(run: Run) -> str:
    return NOTHING if run.efficiency_pct is None else f"{run.efficiency_pct:.0f} %"


def _share(ms: float, found: Profile) -> str:
    return f"{100 * ms / found.total_ms:.1f} %"


def _first_of_batch(found: Bench, run: Run) -> Run:
    return next(other for other in found.runs if other.batch == run.batch)


def _batch(found: Bench) -> str:
    if not found.runs:
        return "nothing timed"
    told = f"batch {found.runs[0].batch}"
    return told if found.scenario == "single-stream" else f"{told}, {found.scenario}"
