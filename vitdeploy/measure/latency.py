"""The stopwatch: interleaved latencies of any number of sessions, and whether the comparison can be trusted.

On a shared machine the latency of one side moves by a factor of two within minutes, while the ratio of two sides that
are timed in turns holds. So every block times each side once, in random order, and a speed-up is a statistic over the
blocks. All raw samples are kept.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Bench, Run
from vitdeploy.measure import conditions
from vitdeploy.measure.statistics import Array, block_log_ratios, percentile, ratio_interval, robust_spread
from vitdeploy.progress import Progress, Silent
from vitdeploy.session import Feeds, Session, finite

MIN_BLOCKS = 10  # below it a bootstrap interval over blocks means little; slow models take the time that this takes
TARGET_BLOCKS = 40  # many short blocks follow the machine's mood better than few long ones
MIN_TURN_S = 0.020  # two scheduler ticks: one interruption is not the whole turn
MIN_RUNS = 3  # a median of fewer is no median
MIN_P99_SAMPLES = 100  # p99 of fewer is their maximum

_WARM_UP_WINDOW = 5  # steady: the median of this many runs is that of the ones before, within _STEADY
_STEADY = 0.05
_WARM_UP_SHARE = 0.1  # of the time to measure, for each side, but at least _MIN_WARM_UP_S
_MIN_WARM_UP_S = 0.5
_MIN_WARM_UP_RUNS = 2  # the first run allocates; the second is what others look like

# Robust spread of the log-ratios over the blocks. Contended cores show 15 % and more, quiet ones 1 to 5 %.
MAX_SPREAD = 0.15
# First against last third of the blocks: this much, and three standard errors of the difference.
MAX_DRIFT = 0.05
_DRIFT_ERRORS = 3.0
_MEDIAN_ERROR = 1.2533  # standard error of a median = sqrt(pi / 2) * sigma / sqrt(n), for normal values

_DIGITS = 4  # of a stored sample in ms: 0.1 µs, the resolution that a clock call leaves


def measure(
    sessions: Sequence[Session],
    feeds: Sequence[Feeds],
    *,
    batch: int,
    seconds: float,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bench:
    """Time the sessions in turns for about `seconds`; the first one is the reference of the speed-ups.

    A turn waits until the threads of the side before it sleep, makes one run that is not counted, then times at least
    `MIN_RUNS` runs. There are at least `MIN_BLOCKS` blocks, however slow the model. Interrupt it at any time.

    Args:
        sessions: what to time, opened.
        feeds: the inputs of each session: the same images, in the form that it takes.
        batch: images per run, for the throughput.
        seconds: time to spend, warm-up aside.
        seed: of the order inside a block and of the bootstrap.
        progress: told about the time that has passed, in percent.

    Raises:
        MeasureError: nothing to time.
    """
    if not sessions or batch < 1 or not 0 < seconds < math.inf:
        message = f"there is nothing to time: {len(sessions)} sessions, batch {batch}, {seconds} s"
        raise MeasureError(message, fix="Give at least one session, one image and some time.")
    progress = progress or Silent()
    clean, runs = [], []
    with progress.step("warm-up"):
        for session, own in zip(sessions, feeds, strict=True):
            clean.append(finite(session.run(own)))
            runs.append(_runs_per_turn(_warm_up(session, own, seconds), seconds / len(sessions)))
    samples, around = _interleave(sessions, feeds, runs, seconds, seed, progress)
    results = _results(sessions, samples, clean, batch, seed)
    for run in results:
        if run.samples < MIN_P99_SAMPLES:
            progress.warn(f"{run.name}: p99 of {run.samples} samples is their maximum; measure longer for a better one")
    doubts = (*_doubts(results), *conditions.doubts(around))
    return Bench(valid=not doubts, doubts=doubts, runs=results)


def _warm_up(session: Session, feeds: Feeds, seconds: float) -> float:
    """Run until steady or out of time; the time of a steady run in seconds."""
    deadline = time.perf_counter() + max(_WARM_UP_SHARE * seconds, _MIN_WARM_UP_S)
    taken: list[float] = []
    while len(taken) < _MIN_WARM_UP_RUNS or (time.perf_counter() < deadline and not _steady(taken)):
        taken.append(_time_run(session, feeds))
    return float(np.median(taken[-_WARM_UP_WINDOW:])) / 1e3


def _steady(taken: Sequence[float]) -> bool:
    if len(taken) < 2 * _WARM_UP_WINDOW:
        return False
    last, before = taken[-_WARM_UP_WINDOW:], taken[-2 * _WARM_UP_WINDOW : -_WARM_UP_WINDOW]
    return bool(abs(np.median(last) / np.median(before) - 1) < _STEADY)


def _runs_per_turn(run_s: float, share_s: float) -> int:
    turn_s = max(share_s / TARGET_BLOCKS, MIN_TURN_S)
    return max(MIN_RUNS, math.ceil(turn_s / max(run_s, 1e-7)))


def _interleave(
    sessions: Sequence[Session],
    feeds: Sequence[Feeds],
    runs: Sequence[int],
    seconds: float,
    seed: int,
    progress: Progress,
) -> tuple[list[list[list[float]]], list[conditions.Block]]:
    """Samples in ms by session, block and run; and what the machine did in each block."""
    samples: list[list[list[float]]] = [[] for _ in sessions]
    around: list[conditions.Block] = []
    rng = np.random.default_rng(seed)
    with _no_garbage_collection(), progress.step("timing in turns", 100) as advance:
        start, told = time.perf_counter(), 0
        before = conditions.snapshot()
        while len(around) < MIN_BLOCKS or time.perf_counter() < start + seconds:
            for side in rng.permutation(len(sessions)):
                if len(sessions) > 1:
                    conditions.settle()
                samples[side].append(_turn(sessions[side], feeds[side], runs[side]))
            after = conditions.snapshot()
            around.append(conditions.between(before, after))
            before = after
            done = _percent_done(len(around), time.perf_counter() - start, seconds)
            advance(done - told)
            told = done
    return samples, around


def _percent_done(blocks: int, passed_s: float, seconds: float) -> int:
    return int(100 * min(blocks / MIN_BLOCKS, passed_s / seconds, 1.0))


def _turn(session: Session, feeds: Feeds, runs: int) -> list[float]:
    session.run(feeds)  # not counted: it wakes this engine's threads and refills the caches
    return [_time_run(session, feeds) for _ in range(runs)]


def _time_run(session: Session, feeds: Feeds) -> float:
    """Milliseconds of one run, outputs on the host."""
    start = time.perf_counter_ns()
    session.run(feeds)
    return round((time.perf_counter_ns() - start) / 1e6, _DIGITS)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _results(
    sessions: Sequence[Session], samples: Sequence[list[list[float]]], clean: Sequence[bool], batch: int, seed: int
) -> tuple[Run, ...]:
    runs = []
    for number, (session, blocks) in enumerate(zip(sessions, samples, strict=True)):
        flat = [sample for block in blocks for sample in block]
        run = Run(
            name=session.name,
            batch=batch,
            samples=len(flat),
            p50_ms=percentile(flat, 50),
            p90_ms=percentile(flat, 90),
            p99_ms=percentile(flat, 99),
            throughput_ips=round(batch * 1e3 / float(np.mean(flat)), 3),
            speedup=ratio_interval(samples[0], blocks, seed=seed) if number else None,
            threads=session.threads,
            effective=dict(session.effective),
            finite=clean[number],
            blocks=tuple(tuple(block) for block in blocks),
        )
        runs.append(run)
    return tuple(runs)


def _doubts(runs: Sequence[Run]) -> list[str]:
    """What the samples themselves say against the comparison; a lone session is held against its own past."""
    found = [f"{run.name}: outputs are not finite" for run in runs if not run.finite]
    reference, others = runs[0], runs[1:]
    if not others:
        medians = np.array([float(np.median(block)) for block in reference.blocks])
        found += _unsteady(np.log(medians), f"the latency of {reference.name}")
    for run in others:
        found += _unsteady(block_log_ratios(reference.blocks, run.blocks), f"the speed-up of {run.name}")
        if reference.threads and run.threads and reference.threads != run.threads:
            found.append(f"{run.name} uses {run.threads} threads, {reference.name} {reference.threads}")
    return found


def _unsteady(logs: Array, what: str) -> list[str]:
    found = []
    spread = robust_spread(logs)
    if spread > MAX_SPREAD:
        found.append(f"{what} varies by {spread:.0%} from block to block (limit {MAX_SPREAD:.0%})")
    third = len(logs) // 3
    drift = float(np.median(logs[-third:]) - np.median(logs[:third]))
    # From one block to the next there is noise but hardly any drift (von Neumann 1941, mean successive differences).
    noise = _MEDIAN_ERROR * robust_spread(np.diff(logs)) / math.sqrt(2) * math.sqrt(2 / third)
    if abs(drift) > max(MAX_DRIFT, _DRIFT_ERRORS * noise):
        found.append(f"{what} drifted by {math.expm1(drift):+.0%} from start to end (limit {MAX_DRIFT:.0%})")
    return found
