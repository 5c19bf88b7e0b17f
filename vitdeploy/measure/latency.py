"""Interleaved latencies of any number of sessions, and whether the comparison can be trusted.

On a shared machine the latency of one side moves by a factor of two within minutes, while the ratio of two sides that
are timed in turns holds. So every block times each side once, in random order, and a speed-up is a statistic over the
blocks. All raw samples are kept.

`measure` times sessions that are open. `measure_reopened` opens them anew several times, because two openings of one
model differ by up to 1 %, which blocks within one opening cannot show: a gate with a limit of 2 % needs to know.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import numpy as np

from vitdeploy import environment
from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Bench, Run
from vitdeploy.measure import conditions, doubts
from vitdeploy.measure.intervals import half_width, of_openings, percentile_intervals, speedup_interval
from vitdeploy.measure.statistics import percentile
from vitdeploy.measure.stopwatch import TARGET_BLOCKS, Ready, Samples, interleave, warm_up
from vitdeploy.progress import Progress, Silent
from vitdeploy.session import Feeds, Session, is_finite

MIN_BLOCKS = 10  # below it a bootstrap interval over blocks means little; slow models take the time that this takes
# Openings: fewer than 6 have no 95 % interval; 20 bear five that went wrong. Openings of one model differ by 1 %,
# blocks of one opening by 0.5 %: many short rounds say more than few long ones.
MIN_ROUNDS, MAX_ROUNDS = 6, 20
MIN_P99_SAMPLES = 100  # p99 of fewer is their maximum
NARROW = 0.005  # half an interval that is narrow enough: a quarter of the gate's default limit of 2 %

_LOOK_EVERY = 10  # blocks between two looks at the width
_MIN_BLOCKS_A_ROUND = 2
_MOST_IN_ALL = 3  # times the time to measure: where opening takes long, there are fewer rounds
_WARM_UP_SHARE = 0.1  # of the time to measure, for each side, but at least _MIN_WARM_UP_S
_MIN_WARM_UP_S = 0.5

Opener = Callable[[], Session]
Stopped = Literal["narrow", "time"]


def measure(
    sessions: Sequence[Session],
    feeds: Sequence[Feeds],
    *,
    batch: int,
    seconds: float,
    narrow: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bench:
    """Time open sessions in turns for about `seconds`; the first one is the reference of the speed-ups.

    A turn waits until the threads of the side before it sleep, runs in for some milliseconds, then times at least three
    runs. There are at least `MIN_BLOCKS` blocks, however slow the model. Interrupt it at any time.

    Args:
        sessions: what to time, opened.
        feeds: the inputs of each session: the same images, in the form that it takes.
        batch: images per run, for the throughput.
        seconds: time to spend at most, warm-up aside.
        narrow: stop as soon as half of every speed-up's interval is below this fraction of it; None: never. Stopping
            on width alone, whatever the ratio, leaves the coverage as it is (Chow & Robbins 1965).
        seed: of the order inside a block and of the bootstrap.
        progress: told about the time that has passed, in percent.

    Raises:
        MeasureError: nothing to time.
    """
    timing = _Timing(feeds, batch, seconds, narrow, seed, progress or Silent(), len(sessions))

    def enough(blocks: int, passed_s: float) -> bool:
        tell(min(blocks / MIN_BLOCKS, passed_s / seconds))
        looks = blocks >= 2 * MIN_BLOCKS and blocks % _LOOK_EVERY == 0
        return (looks and timing.narrow_enough()) or (blocks >= MIN_BLOCKS and passed_s >= seconds)

    with _percent(timing.progress) as tell:
        timing.add_round(sessions, seconds, enough)
    return timing.result(sessions)


def measure_reopened(
    openers: Sequence[Opener],
    feeds: Sequence[Feeds],
    *,
    batch: int,
    seconds: float,
    narrow: float | None = NARROW,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bench:
    """Like `measure`, in `MIN_ROUNDS` to `MAX_ROUNDS` rounds, each of which opens all sides anew in random order.

    Speed-ups then have intervals over the rounds. Opening is not counted in `seconds`, but after three times as long in
    all no further round begins.

    Raises:
        MeasureError: nothing to time.
    """
    timing = _Timing(feeds, batch, seconds, narrow, seed, progress or Silent(), len(openers))
    share_s = seconds / MAX_ROUNDS

    def enough(blocks: int, passed_s: float) -> bool:
        return blocks >= _MIN_BLOCKS_A_ROUND and passed_s >= share_s

    until = time.perf_counter() + _MOST_IN_ALL * seconds
    with _percent(timing.progress) as tell:
        for done in range(1, MAX_ROUNDS + 1):
            with ExitStack() as stack:
                opened = {side: stack.enter_context(openers[side]()) for side in timing.rng.permutation(len(openers))}
                sessions = [opened[side] for side in range(len(openers))]
                timing.add_round(sessions, share_s, enough)
            tell(done / MAX_ROUNDS)
            out_of_time = timing.samples.seconds >= seconds or time.perf_counter() >= until
            if done >= MIN_ROUNDS and (out_of_time or timing.narrow_enough()):
                break
        tell(1.0)
    return timing.result(sessions)


class _Timing:
    """One measurement while it goes on: what was timed so far, and what it comes to."""

    def __init__(
        self,
        feeds: Sequence[Feeds],
        batch: int,
        seconds: float,
        narrow: float | None,
        seed: int,
        progress: Progress,
        sides: int,
    ) -> None:
        if not sides or batch < 1 or not 0 < seconds < math.inf:
            message = f"there is nothing to time: {sides} sessions, batch {batch}, {seconds} s"
            raise MeasureError(message, fix="Give at least one session, one image and some time.")
        self.feeds, self.batch, self.seconds, self.narrow, self.seed = feeds, batch, seconds, narrow, seed
        self.progress = progress
        self.rng = np.random.default_rng(seed)
        self.samples = Samples([[] for _ in range(sides)])
        self.stopped: Stopped = "time"
        self._clean = [True] * sides
        self._warm: list[Ready] = []

    def add_round(self, sessions: Sequence[Session], share_s: float, enough: Callable[[int, float], bool]) -> None:
        """Warm up, then time blocks until there are enough."""
        sides = list(zip(sessions, self.feeds, strict=True))
        self._clean = [c and is_finite(s.run(own)) for c, (s, own) in zip(self._clean, sides, strict=True)]
        limit_s = max(_WARM_UP_SHARE * share_s, _MIN_WARM_UP_S)
        warm = [warm_up(session, own, limit_s) for session, own in sides]
        self._warm = self._warm or warm  # the first opening is the cold one
        runs = [ready.runs_per_turn(self.seconds / len(sides) / TARGET_BLOCKS) for ready in warm]
        interleave(sessions, self.feeds, runs, self.samples, self.rng, enough)

    def narrow_enough(self) -> bool:
        """Whether every speed-up is known well enough to stop."""
        reference, *others = self.samples.blocks
        if self.narrow is None or not others:
            return False
        found = (speedup_interval(reference, other, self.samples.rounds, seed=self.seed) for other in others)
        if all(half_width(interval) <= self.narrow for interval in found):
            self.stopped = "narrow"
        return self.stopped == "narrow"

    def result(self, sessions: Sequence[Session]) -> Bench:
        """The evidence; sessions may be closed by now."""
        runs = tuple(self._run(number, session) for number, session in enumerate(sessions))
        for run in runs:
            if run.samples < MIN_P99_SAMPLES:
                told = f"p99 of {run.samples} samples is their maximum; measure longer for a better one"
                self.progress.warn(f"{run.name}: {told}")
        found = (*doubts.of_runs(runs), *conditions.doubts(self.samples.around))
        cpus = environment.usable_cpus()
        return Bench(
            valid=not found,
            doubts=found,
            runs=runs,
            stopped=self.stopped,
            seconds=round(self.samples.seconds, 3),
            cpus=cpus,
            pinned=len(cpus) < (os.cpu_count() or len(cpus)),
        )

    def _run(self, number: int, session: Session) -> Run:
        reference, blocks, rounds = self.samples.blocks[0], self.samples.blocks[number], self.samples.rounds
        flat = [sample for block in blocks for sample in block]
        p50, p90, p99 = percentile_intervals(of_openings(blocks, rounds), (50, 90, 99), seed=self.seed)
        return Run(
            name=session.name,
            batch=self.batch,
            samples=len(flat),
            p50_ms=percentile(flat, 50),
            p90_ms=percentile(flat, 90),
            p99_ms=percentile(flat, 99),
            throughput_ips=round(self.batch * 1e3 / float(np.mean(flat)), 3),
            speedup=speedup_interval(reference, blocks, rounds, seed=self.seed) if number else None,
            threads=session.threads,
            effective=dict(session.effective),
            finite=self._clean[number],
            blocks=tuple(tuple(block) for block in blocks),
            p50_ci95=p50,
            p90_ci95=p90,
            p99_ci95=p99,
            rounds=tuple(rounds),
            warm_up=self._warm[number].warm_up,
        )


@contextmanager
def _percent(progress: Progress) -> Iterator[Callable[[float], None]]:
    """A step that is told what fraction is done."""
    with progress.step("timing in turns", 100) as advance:
        told = 0

        def tell(fraction: float) -> None:
            nonlocal told
            now = max(told, int(100 * min(fraction, 1.0)))
            advance(now - told)
            told = now

        yield tell
