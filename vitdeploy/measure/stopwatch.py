"""Run sessions in turns and note how long every run took. What the samples mean is told elsewhere."""

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
from vitdeploy.session import Feeds, Session

MIN_RUNS = 3  # a median of fewer is no median
TARGET_BLOCKS = 40  # many short blocks follow the machine's mood better than few long ones
# A turn is long against the scheduler's time slice (4 ms): with turns of 20 ms an engine whose two threads woke on one
# core spent a fifth of its turn there, and the ratio of a model to itself spread by 19 % instead of 2 %.
MIN_TURN_S = 0.050
RUN_IN_S = 0.008  # two slices: threads find their cores, caches fill

_WARM_UP_WINDOW = 5  # steady: the median of this many runs is that of the ones before, within _STEADY
_STEADY = 0.05
_MIN_WARM_UP_RUNS = 2  # the first run allocates; the second is what others look like
_DIGITS = 4  # of a stored sample in ms: 0.1 µs, the resolution that a clock call leaves


@dataclass
class Samples:
    """What was timed: milliseconds by session, block and run, what the machine did in each block, blocks a round."""

    blocks: list[list[list[float]]]
    around: list[conditions.Block] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def count(self) -> int:
        """Blocks so far."""
        return len(self.around)


@dataclass(frozen=True)
class Ready:
    """A warmed-up side: its warm-up, and how many runs make a turn."""

    warm_up: WarmUp
    run_s: float

    def runs_per_turn(self, turn_s: float) -> int:
        """How many runs fill a turn of this length."""
        return max(MIN_RUNS, math.ceil(max(turn_s, MIN_TURN_S) / max(self.run_s, 1e-7)))


def warm_up(session: Session, feeds: Feeds, limit_s: float) -> Ready:
    """Run until steady or out of time."""
    start = time.perf_counter()
    taken: list[float] = []
    steady = False
    while len(taken) < _MIN_WARM_UP_RUNS or (time.perf_counter() < start + limit_s and not steady):
        taken.append(time_run(session, feeds))
        steady = _steady(taken)
    told = WarmUp(runs=len(taken), seconds=round(time.perf_counter() - start, 3), steady=steady)
    return Ready(told, float(np.median(taken[-_WARM_UP_WINDOW:])) / 1e3)


def interleave(
    sessions: Sequence[Session],
    feeds: Sequence[Feeds],
    runs: Sequence[int],
    samples: Samples,
    rng: np.random.Generator,
    enough: Callable[[int, float], bool],
) -> None:
    """Add blocks to `samples` until `enough(blocks, seconds)` of this call says so.

    Every block times each side once, in random order. A turn waits until the threads of the side before it sleep, and
    runs in before it counts.
    """
    start, done = time.perf_counter(), 0
    with _no_garbage_collection():
        before = conditions.snapshot()
        while not enough(done, time.perf_counter() - start):
            for side in rng.permutation(len(sessions)):
                if len(sessions) > 1:
                    conditions.settle()
                samples.blocks[side].append(_turn(sessions[side], feeds[side], runs[side]))
            after = conditions.snapshot()
            samples.around.append(conditions.between(before, after))
            before, done = after, done + 1
    samples.seconds += time.perf_counter() - start
    samples.rounds.append(done)


def time_run(session: Session, feeds: Feeds) -> float:
    """Milliseconds of one run, outputs on the host."""
    start = time.perf_counter_ns()
    session.run(feeds)
    return round((time.perf_counter_ns() - start) / 1e6, _DIGITS)


def _steady(taken: Sequence[float]) -> bool:
    if len(taken) < 2 * _WARM_UP_WINDOW:
        return False
    last, before = taken[-_WARM_UP_WINDOW:], taken[-2 * _WARM_UP_WINDOW : -_WARM_UP_WINDOW]
    return bool(abs(np.median(last) / np.median(before) - 1) < _STEADY)


def _turn(session: Session, feeds: Feeds, runs: int) -> list[float]:
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
