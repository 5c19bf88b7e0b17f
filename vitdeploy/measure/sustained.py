"""Run one session until temperature and latency are steady.

A board with a small heat sink is fast for a minute, and slower once it is hot. The sustained latency is that of the
last two minutes of a load that went on until nothing changed any more. The load is in blocks of some seconds;
temperature and clocks are read between blocks, never while a run is timed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vitdeploy.evidence import BlockState, Power, Sustained, SustainedBlock
from vitdeploy.measure import conditions, thermal
from vitdeploy.measure.latency import compute_figures
from vitdeploy.measure.statistics import percentile
from vitdeploy.session import Feeds, Session, is_finite

BLOCK_S = 5.0
WINDOW = 24
"""The last blocks, which must be steady and give the figures: two minutes."""
MAX_SLOPE = 0.3
"""In degrees Celsius a minute. A heat sink with a time constant of 8 minutes is then 2 to 3 degrees from its end."""
MAX_DRIFT = 0.02
"""Between the first and the last third of the window, of the median latency."""

_MAX_SAMPLES = 1000  # of one block; of more, every second or third … is kept
_LEAST_CHANGE = 0.03  # of the latency, for a finding
_LEAST_CLOCK_CHANGE = 0.05  # of a clock, for a finding
_DIGITS = 4


@dataclass(frozen=True)
class Sensors:
    """The clock and the sensors that a sustained run reads."""

    clock: Callable[[], float] = time.perf_counter
    snapshot: Callable[[], conditions.Snapshot] = conditions.take_snapshot
    celsius: Callable[[], float | None] = field(default=thermal.read_celsius)
    gpu_mhz: Callable[[], float | None] = field(default=thermal.read_gpu_mhz)


def run_until_steady(
    session: Session,
    feeds: Feeds,
    minutes: float,
    *,
    batch: int,
    sensors: Sensors | None = None,
    report: Callable[[SustainedBlock], None] | None = None,
) -> Sustained:
    """Run `session` without a pause until it is steady, at most for `minutes`, but for one window at least.

    Args:
        session: the open session; its first run may be slow.
        feeds: its inputs.
        minutes: the longest time.
        batch: images per run, for the throughput.
        sensors: the clock and the sensors; None: this machine's.
        report: called after each block.
    """
    read = sensors or Sensors()
    finite = is_finite(session.run(feeds))
    course: list[SustainedBlock] = []
    last: deque[tuple[float, ...]] = deque(maxlen=WINDOW)
    start = read.clock()
    while len(course) < WINDOW or (not is_steady(course) and read.clock() - start < 60 * minutes):
        before = read.snapshot()
        samples = _time_block(session, feeds, read.clock)
        state = BlockState(**asdict(conditions.describe_block(before, read.snapshot())))
        passed = (read.clock() - start) / 60
        last.append(samples)
        course.append(
            SustainedBlock(
                minutes=round(passed, _DIGITS), p50_ms=percentile(samples, 50), celsius=read.celsius(),
                gpu_mhz=read.gpu_mhz(), state=state,
            )
        )  # fmt: skip
        if report is not None:
            report(course[-1])
    return summarize(course, tuple(last), minutes, batch=batch, finite=finite)


def summarize(
    course: Sequence[SustainedBlock],
    blocks: Sequence[tuple[float, ...]],
    minutes: float,
    *,
    batch: int,
    finite: bool = True,
    power: Power | None = None,
) -> Sustained:
    """Return the evidence of a sustained run, all of which follows from these values.

    Args:
        course: every block.
        blocks: the samples of the last blocks in ms.
        minutes: the longest time that was allowed.
        batch: images per run.
        finite: False if an output held NaN or infinity.
        power: the energy right after the run.
    """
    figures: dict[str, Any] = compute_figures(blocks, (), batch, None)._asdict()
    del figures["speedup"]
    steady = is_steady(course)
    return Sustained(
        limit_minutes=minutes,
        steady=steady,
        judged_by=_explain_criterion(course),
        batch=batch,
        findings=tuple(_list_findings(course)),
        doubts=tuple(_list_doubts(course, minutes, finite=finite, steady=steady)),
        course=tuple(course),
        blocks=tuple(blocks),
        power=power,
        finite=finite,
        **figures,
    )


def is_steady(course: Sequence[SustainedBlock]) -> bool:
    """Return True if neither temperature nor latency changes in the last window.

    Without a thermal sensor the latency alone decides.
    """
    if len(course) < WINDOW:
        return False
    drift, slope = _latency_drift(course[-WINDOW:]), _temperature_slope(course[-WINDOW:])
    return abs(drift) <= MAX_DRIFT and (slope is None or abs(slope) <= MAX_SLOPE)


def _time_block(session: Session, feeds: Feeds, clock: Callable[[], float]) -> tuple[float, ...]:
    samples: list[float] = []
    until = clock() + BLOCK_S
    while not samples or clock() < until:
        start = clock()
        session.run(feeds)
        samples.append(round(1e3 * (clock() - start), _DIGITS))
    return tuple(samples[:: -(-len(samples) // _MAX_SAMPLES)])


def _latency_drift(window: Sequence[SustainedBlock]) -> float:
    third = len(window) // 3
    first, last = (float(np.median([b.p50_ms for b in part])) for part in (window[:third], window[-third:]))
    return last / first - 1


def _temperature_slope(window: Sequence[SustainedBlock]) -> float | None:
    """Return the slope of the least-squares line in degrees a minute; None unless every block has a temperature."""
    celsius = [block.celsius for block in window if block.celsius is not None]
    minutes = [block.minutes for block in window]
    if len(celsius) < len(window) or minutes[-1] <= minutes[0]:
        return None
    return float(np.polyfit(minutes, celsius, 1)[0])


def _explain_criterion(course: Sequence[SustainedBlock]) -> str:
    if all(block.celsius is not None for block in course[-WINDOW:]):
        return "temperature and latency"
    return "latency alone: no thermal zone of this machine can be read"


def _list_findings(course: Sequence[SustainedBlock]) -> list[str]:
    """Return what changed from the first block to the last window, in words."""
    window = course[-WINDOW:]
    findings = []
    cold, hot = course[0].p50_ms, float(np.median([block.p50_ms for block in window]))
    if abs(hot / cold - 1) > _LEAST_CHANGE:
        findings.append(
            f"the latency changed by {hot / cold - 1:+.0%}, from {cold:.3g} ms cold to {hot:.3g} ms at the end"
        )
    throttled = sum(block.state.throttled > 0 for block in course)
    if throttled:
        findings.append(
            f"the machine was slowed down in {throttled} of {len(course)} blocks, for heat, power or a CPU quota"
        )
    for name, first, last in (
        ("CPU", course[0].state.mhz, [block.state.mhz for block in window if block.state.mhz]),
        ("GPU", course[0].gpu_mhz, [block.gpu_mhz for block in window if block.gpu_mhz]),
    ):
        if first and last and abs(float(np.median(last)) / first - 1) > _LEAST_CLOCK_CHANGE:
            findings.append(f"the {name} clock went from {first:.0f} to {float(np.median(last)):.0f} MHz")
    return findings


def _list_doubts(course: Sequence[SustainedBlock], minutes: float, *, finite: bool, steady: bool) -> list[str]:
    """Return reasons to distrust the figures: other processes and an end before it was steady, but not throttling."""
    window = course[-WINDOW:]
    doubts = [] if finite else ["outputs are not finite"]
    if not steady:
        drift, slope = _latency_drift(window), _temperature_slope(window)
        changes = f"the latency changes by {drift:+.1%}" + (
            f", the temperature by {slope:+.2g} °C a minute" if slope else ""
        )
        doubts.append(f"not steady after {minutes:g} minutes: in the last blocks {changes}")
    quiet = [block.state.model_copy(update={"throttled": 0, "mhz": None}) for block in window]
    return [*doubts, *conditions.find_doubts(quiet)]
