"""Interleaved latencies of any number of sessions, and the reasons to doubt the comparison.

On a shared machine the latency of one side changes by a factor of two within minutes, but the ratio of two sides that
are timed in turns is stable. So every block times each side once, in random order, and a speed-up is a statistic over
the blocks. All raw samples are kept.

`measure` times open sessions. `measure_reopened` opens them anew several times: two openings of one model differ by up
to 1 %, which the blocks of one opening cannot show, and which matters to a gate with a limit of 2 %.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Literal, NamedTuple

import numpy as np

from vitdeploy import environment
from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Bench, BlockState, Interval, Run
from vitdeploy.frozen import replace
from vitdeploy.measure import conditions, doubts
from vitdeploy.measure.intervals import half_width, join_rounds, percentile_intervals, speedup_interval
from vitdeploy.measure.statistics import percentile
from vitdeploy.measure.stopwatch import TARGET_BLOCKS, Ready, Samples, interleave, warm_up
from vitdeploy.progress import Progress, Silent
from vitdeploy.session import Feeds, Session, is_finite

MIN_BLOCKS = 10  # fewer give no useful bootstrap interval, so a slow model takes longer than asked for
# Fewer than 6 rounds have no 95 % interval; the interval of 20 ignores five outliers. Openings of one model differ by
# 1 %, blocks of one opening by 0.5 %, so many short rounds tell more than few long ones.
MIN_ROUNDS, MAX_ROUNDS = 6, 20
MIN_P99_SAMPLES = 100  # p99 of fewer is their maximum
NARROW = 0.005  # half the width of a narrow interval: a quarter of the gate's default limit of 2 %

_BLOCKS_PER_CHECK = 10  # blocks between two checks of the intervals' widths
_MIN_BLOCKS_PER_ROUND = 2
_MAX_TOTAL = 3  # times the measuring time, opening included: models that open slowly get fewer rounds
_WARM_UP_SHARE = 0.1  # of the measuring time, for each side, but at least _MIN_WARM_UP_S
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
    """Time open sessions in turns; the first one is the reference of the speed-ups.

    A turn waits until the threads of the previous side sleep, runs for some milliseconds without counting, then times
    at least three runs. There are at least `MIN_BLOCKS` blocks, however slow the model. It can be interrupted at any
    time.

    Args:
        sessions: the open sessions.
        feeds: the inputs of each session: the same images, in the form that the session takes.
        batch: images per run, for the throughput.
        seconds: time to spend, without the warm-up.
        narrow: stop early when half the width of every speed-up's interval is at most this fraction of the speed-up;
            None: do not. Stopping on the width alone does not change the coverage (Chow & Robbins 1965).
        seed: of the order inside a block and of the bootstrap.
        progress: receives the time that has passed, in percent.

    Raises:
        MeasureError: there is nothing to time.
    """
    timing = _Timing(feeds, batch, seconds, narrow, seed, progress or Silent(), len(sessions))

    def is_enough(blocks: int, passed_s: float) -> bool:
        report(min(blocks / MIN_BLOCKS, passed_s / seconds))
        check = blocks >= 2 * MIN_BLOCKS and blocks % _BLOCKS_PER_CHECK == 0
        return (check and timing.is_narrow()) or (blocks >= MIN_BLOCKS and passed_s >= seconds)

    with _percent_done(timing.progress) as report:
        timing.add_round(sessions, seconds, is_enough)
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
    """Measure in `MIN_ROUNDS` to `MAX_ROUNDS` rounds; each opens all sides anew, in random order.

    Speed-ups have intervals over the rounds. `seconds` does not include the opening, but no further round begins once
    three times `seconds` have passed in all. The other arguments are those of `measure`.

    Raises:
        MeasureError: there is nothing to time.
    """
    timing = _Timing(feeds, batch, seconds, narrow, seed, progress or Silent(), len(openers))
    share_s = seconds / MAX_ROUNDS

    def is_enough(blocks: int, passed_s: float) -> bool:
        return blocks >= _MIN_BLOCKS_PER_ROUND and passed_s >= share_s

    until = time.perf_counter() + _MAX_TOTAL * seconds
    with _percent_done(timing.progress) as report:
        for done in range(1, MAX_ROUNDS + 1):
            with ExitStack() as stack:
                opened = {side: stack.enter_context(openers[side]()) for side in timing.rng.permutation(len(openers))}
                sessions = [opened[side] for side in range(len(openers))]
                timing.add_round(sessions, share_s, is_enough)
            report(done / MAX_ROUNDS)
            out_of_time = timing.samples.seconds >= seconds or time.perf_counter() >= until
            if done >= MIN_ROUNDS and (out_of_time or timing.is_narrow()):
                break
        report(1.0)
    return timing.result(sessions)


class _Timing:
    """A measurement in progress: the samples so far, and the evidence made of them."""

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
            raise MeasureError(message, fix="Give at least one session, a batch of at least 1, and a time above 0 s.")
        self.feeds, self.batch, self.seconds, self.narrow, self.seed = feeds, batch, seconds, narrow, seed
        self.progress = progress
        self.rng = np.random.default_rng(seed)
        self.samples = Samples([[] for _ in range(sides)])
        self.stopped: Stopped = "time"
        self._finite = [True] * sides
        self._first_warm_ups: list[Ready] = []

    def add_round(self, sessions: Sequence[Session], share_s: float, is_enough: Callable[[int, float], bool]) -> None:
        """Warm up, then time blocks until there are enough."""
        sides = list(zip(sessions, self.feeds, strict=True))
        outputs_finite = [is_finite(session.run(inputs)) for session, inputs in sides]
        self._finite = [before and now for before, now in zip(self._finite, outputs_finite, strict=True)]
        limit_s = max(_WARM_UP_SHARE * share_s, _MIN_WARM_UP_S)
        warm_ups = [warm_up(session, inputs, limit_s) for session, inputs in sides]
        self._first_warm_ups = self._first_warm_ups or warm_ups  # only the first opening is cold
        runs = [ready.runs_per_turn(self.seconds / len(sides) / TARGET_BLOCKS) for ready in warm_ups]
        interleave(sessions, self.feeds, runs, self.samples, self.rng, is_enough)

    def is_narrow(self) -> bool:
        """Return True if the interval of every speed-up is narrow enough to stop."""
        reference, *others = self.samples.blocks
        if self.narrow is None or not others:
            return False
        intervals = (speedup_interval(reference, other, self.samples.rounds, seed=self.seed) for other in others)
        if all(half_width(interval) <= self.narrow for interval in intervals):
            self.stopped = "narrow"
        return self.stopped == "narrow"

    def result(self, sessions: Sequence[Session]) -> Bench:
        """Return the evidence. The sessions may be closed."""
        reference, *others = (self._run(number, session) for number, session in enumerate(sessions))
        others = [replace(run, doubts=doubts.find_own_doubts(run, reference)) for run in others]
        runs = (replace(reference, doubts=doubts.find_own_doubts(reference)), *others)
        for run in runs:
            if run.samples < MIN_P99_SAMPLES:
                warning = f"the p99 of {run.samples} samples is their maximum; measure longer for a better p99"
                self.progress.warn(f"{run.name}: {warning}")
        reasons = (*doubts.find_doubts(runs), *conditions.find_doubts(self.samples.conditions))
        cpus = environment.usable_cpus()
        return Bench(
            valid=not reasons,
            doubts=reasons,
            runs=runs,
            stopped=self.stopped,
            seconds=round(self.samples.seconds, 3),
            cpus=cpus,
            pinned=len(cpus) < (os.cpu_count() or len(cpus)),
            conditions={self.batch: tuple(BlockState(**asdict(block)) for block in self.samples.conditions)},
        )

    def _run(self, number: int, session: Session) -> Run:
        blocks, rounds = self.samples.blocks[number], self.samples.rounds
        reference = self.samples.blocks[0] if number else None
        figures = compute_figures(blocks, rounds, self.batch, reference, seed=self.seed)
        return Run(
            name=session.name,
            batch=self.batch,
            threads=session.threads,
            effective=dict(session.effective),
            finite=self._finite[number],
            blocks=tuple(tuple(block) for block in blocks),
            rounds=tuple(rounds),
            warm_up=self._first_warm_ups[number].warm_up,
            **figures._asdict(),
        )


class Figures(NamedTuple):
    """The figures of a run that follow from its samples alone, by the names of `Run`."""

    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput_ips: float
    speedup: Interval | None
    p50_ci95: tuple[float, float]
    p90_ci95: tuple[float, float]
    p99_ci95: tuple[float, float]


def compute_figures(
    blocks: Sequence[Sequence[float]],
    rounds: Sequence[int],
    images: int,
    reference: Sequence[Sequence[float]] | None,
    *,
    seed: int = 0,
) -> Figures:
    """Compute the figures of a run from its samples.

    Args:
        blocks: milliseconds, block by block.
        rounds: number of blocks of each round.
        images: number of images of one sample.
        reference: the blocks of the reference; None: there is no speed-up.
        seed: of the bootstrap.
    """
    flat = [sample for block in blocks for sample in block]
    p50, p90, p99 = percentile_intervals(join_rounds(blocks, rounds), (50, 90, 99), seed=seed)
    return Figures(
        samples=len(flat),
        p50_ms=percentile(flat, 50),
        p90_ms=percentile(flat, 90),
        p99_ms=percentile(flat, 99),
        throughput_ips=round(images * 1e3 / float(np.mean(flat)), 3),
        speedup=None if reference is None else speedup_interval(reference, blocks, rounds, seed=seed),
        p50_ci95=p50,
        p90_ci95=p90,
        p99_ci95=p99,
    )


@contextmanager
def _percent_done(progress: Progress) -> Iterator[Callable[[float], None]]:
    """Show a step in percent; yield a function that takes the fraction that is done."""
    with progress.step("Time the sessions in turns", 100) as advance:
        reported = 0

        def report(fraction: float) -> None:
            nonlocal reported
            percent = max(reported, int(100 * min(fraction, 1.0)))
            advance(percent - reported)
            reported = percent

        yield report
