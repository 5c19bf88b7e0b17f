"""Run sessions in turns and record how long every run took. `latency` makes statistics of the samples."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from vitdeploy.evidence import WarmUp
from vitdeploy.measure import conditions
from vitdeploy.measure.conditions import Block
from vitdeploy.session import Feeds, Session

MIN_RUNS = 3  # fewer have no useful median
TARGET_BLOCKS = 40  # many short blocks follow the changing speed of the machine better than few long ones
# A turn is long compared with the scheduler's time slice (4 ms). With turns of 20 ms, an engine whose two threads woke
# on one core spent a fifth of its turn there, and the ratio of a model to itself spread by 19 % instead of 2 %.
MIN_TURN_S = 0.050
RUN_IN_S = 0.008  # two slices: the threads find their cores, and the caches fill

_WARM_UP_WINDOW = 5  # runs are steady if the median of this many differs by less than _STEADY from the ones before
_STEADY = 0.05
_MIN_WARM_UP_RUNS = 2  # the first run allocates memory; the second is like the later ones
_DIGITS = 4  # of a stored sample in ms: 0.1 µs, about the cost of reading the clock


@dataclass
class Samples:
    """Timed samples, as they are added.

    Attributes:
        blocks: milliseconds by session, block and run.
        conditions: the state of the machine in each block.
        rounds: number of blocks of each round.
        seconds: time spent.
    """

    blocks: list[list[list[float]]]
    conditions: list[Block] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Ready:
    """A side that is warm: its warm-up, and the seconds that a run takes."""

    warm_up: WarmUp
    run_s: float

    def runs_per_turn(self, turn_s: float) -> int:
        """Return the number of runs that fill a turn of this length."""
        return max(MIN_RUNS, math.ceil(max(turn_s, MIN_TURN_S) / max(self.run_s, 1e-7)))


def warm_up(session: Session, feeds: Feeds, limit_s: float) -> Ready:
    """Run a session until its latency is steady, or the time is up."""
    start = time.perf_counter()
    times_ms: list[float] = []
    steady = False
    while len(times_ms) < _MIN_WARM_UP_RUNS or (time.perf_counter() < start + limit_s and not steady):
        times_ms.append(time_run(session, feeds))
        steady = _is_steady(times_ms)
    record = WarmUp(runs=len(times_ms), seconds=round(time.perf_counter() - start, 3), steady=steady)
    return Ready(record, float(np.median(times_ms[-_WARM_UP_WINDOW:])) / 1e3)


def interleave(
    sessions: Sequence[Session],
    feeds: Sequence[Feeds],
    runs: Sequence[int],
    samples: Samples,
    rng: np.random.Generator,
    is_enough: Callable[[int, float], bool],
) -> None:
    """Add a round to `samples`: blocks, until `is_enough(blocks, seconds)` of this round.

    Every block times each side once, in random order. A turn waits until the threads of the previous side sleep, and
    its first runs do not count.
    """
    start, done = time.perf_counter(), 0
    with _no_garbage_collection():
        before = conditions.take_snapshot()
        while not is_enough(done, time.perf_counter() - start):
            for side in rng.permutation(len(sessions)):
                if len(sessions) > 1:
                    conditions.settle()
                samples.blocks[side].append(_time_turn(sessions[side], feeds[side], runs[side]))
            after = conditions.take_snapshot()
            samples.conditions.append(conditions.describe_block(before, after))
            before, done = after, done + 1
    samples.seconds += time.perf_counter() - start
    samples.rounds.append(done)


def time_run(session: Session, feeds: Feeds) -> float:
    """Return the milliseconds of one run, until the outputs are on the host."""
    start = time.perf_counter_ns()
    session.run(feeds)
    return round((time.perf_counter_ns() - start) / 1e6, _DIGITS)


def _is_steady(times_ms: Sequence[float]) -> bool:
    if len(times_ms) < 2 * _WARM_UP_WINDOW:
        return False
    last, before = times_ms[-_WARM_UP_WINDOW:], times_ms[-2 * _WARM_UP_WINDOW : -_WARM_UP_WINDOW]
    return bool(abs(np.median(last) / np.median(before) - 1) < _STEADY)


def _time_turn(session: Session, feeds: Feeds, runs: int) -> list[float]:
    run_in_until = time.perf_counter() + RUN_IN_S
    session.run(feeds)
    while time.perf_counter() < run_in_until:
        session.run(feeds)
    return [time_run(session, feeds) for _ in range(runs)]


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
