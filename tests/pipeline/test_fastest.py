"""The choice among timed candidates: what is proven counts, and the rest names --seconds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evidence import run
from tests.measure.test_latency import FEED, Clock, Fake, clock
from vitdeploy.evidence import Bench, Interval
from vitdeploy.measure.latency import measure
from vitdeploy.pipeline import fastest as fastest_of
from vitdeploy.pipeline.fastest import pick_fastest, time_until_valid

__all__ = ["clock"]

NAMES = ["fp32", "int8", "bf16"]


def bench(*ratios: float, doubts: tuple[str, ...] = (), own: dict[int, tuple[str, ...]] | None = None) -> Bench:
    """Speed-ups over the first run, each give or take 0.05. `own` are the doubts of single runs."""
    own = own or {}
    speedups = [None, *(Interval(ratio=ratio, ci95=(ratio - 0.05, ratio + 0.05)) for ratio in ratios)]
    runs = tuple(
        run(name, 10.0, speedup, doubts=own.get(index, ()))
        for index, (name, speedup) in enumerate(zip(NAMES, speedups, strict=False))
    )
    every = (*doubts, *(doubt for reasons in own.values() for doubt in reasons))
    return Bench(valid=not every, doubts=every, runs=runs)


def test_without_a_number_a_doubtful_measurement_is_repeated_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastest_of, "SECONDS", 3.0)
    monkeypatch.setattr(fastest_of, "LONGER_SECONDS", 10.0)
    asked: list[float] = []
    answers = {3.0: bench(1.5, doubts=("busy",)), 10.0: bench(1.5)}

    def time(seconds: float) -> Bench:
        asked.append(seconds)
        return answers[seconds]

    assert time_until_valid(time, None).valid
    assert asked == [3.0, 10.0]


@pytest.mark.parametrize("doubts", [(), ("busy",)])
def test_a_number_is_the_time_of_the_only_measurement(doubts: tuple[str, ...]) -> None:
    asked: list[float] = []

    def time(seconds: float) -> Bench:
        asked.append(seconds)
        return bench(1.5, doubts=doubts)

    assert time_until_valid(time, 42.0).doubts == doubts
    assert asked == [42.0]


def test_more_seconds_measure_more_blocks_and_decide(clock: Clock) -> None:
    """A candidate that is 4 % faster on a noisy machine: undecided in 2 s, certain in 60 (more and longer blocks)."""
    noise = np.random.default_rng(0)

    def noisy(ms: float) -> object:
        return lambda number, now: ms * float(noise.lognormal(0, 0.12))

    def time(seconds: float) -> Bench:
        sides = [Fake(clock, "fp32", noisy(10.4)), Fake(clock, "int8", noisy(10.0))]
        return measure(sides, [FEED] * 2, batch=1, seconds=seconds)

    short, long = time_until_valid(time, 2.0), time_until_valid(time, 60.0)
    assert short.valid
    assert long.valid
    assert len(long.runs[1].blocks) > len(short.runs[1].blocks)
    assert long.runs[1].samples > 10 * short.runs[1].samples
    undecided, decided = pick_fastest(NAMES[:2], short, 2.0), pick_fastest(NAMES[:2], long, 60.0)
    assert (undecided.index, undecided.reasons[1]) == (0, "not certainly faster than fp32")
    assert undecided.notes[0] == "auto kept fp32"
    assert undecided.notes[1].startswith("it is in doubt whether int8, ")
    assert undecided.notes[1].endswith(" ×, is faster than fp32. --seconds 6 measures longer")
    assert decided.index == 1
    assert decided.notes[0].startswith("auto chose int8: 1.0")


@pytest.mark.parametrize(("seconds", "longer"), [(None, 30), (20.0, 60), (0.5, 1.5)])
def test_in_doubt_the_default_is_kept_and_the_note_says_how_to_insist(seconds: float | None, longer: float) -> None:
    fastest = pick_fastest(NAMES, bench(1.5, 1.2, doubts=("busy",)), seconds)
    assert fastest.index == 0
    assert fastest.speedups == (None, None, None)
    assert fastest.reasons == ("", "its speed is in doubt", "its speed is in doubt")
    insist = f"To insist, stop other processes and measure longer: --seconds {longer:g}"
    assert fastest.notes == ("auto kept fp32", f"the comparison of speeds is in doubt: busy. {insist}")


def test_a_doubt_about_one_candidate_leaves_the_others() -> None:
    doubt = "the speed-up of bf16 varies by 30% from block to block (limit 15%)"
    timing = bench(1.2, 1.5, own={2: (doubt,)})
    fastest = pick_fastest(NAMES, timing, None)
    assert fastest.index == 1
    assert fastest.reasons == ("int8 is faster", "", "its speed is in doubt")
    assert fastest.speedups[1] is not None
    assert fastest.speedups[2] is None
    assert fastest.notes[0] == "auto chose int8: 1.20 [1.15, 1.25] × as fast as fp32 on this machine"
    assert doubt in fastest.notes[1]
    assert fastest.notes[1].endswith("--seconds 30")


@pytest.mark.parametrize("own", [{0: ("fp32: outputs are not finite",)}, {0: ("x",), 2: ("y",)}])
def test_a_doubt_about_the_reference_is_about_all(own: dict[int, tuple[str, ...]]) -> None:
    fastest = pick_fastest(NAMES, bench(1.2, 1.5, own=own), None)
    assert (fastest.index, fastest.speedups) == (0, (None, None, None))


def test_a_doubt_about_the_machine_is_about_all() -> None:
    timing = bench(1.2, 1.5, doubts=("busy",), own={2: ("the speed-up of bf16 drifted",)})
    assert pick_fastest(NAMES, timing, None).index == 0


def test_what_is_certain_is_not_called_doubtful() -> None:
    slower, faster = pick_fastest(NAMES, bench(0.8, 0.9), None), pick_fastest(NAMES, bench(1.5, 1.02), None)
    assert slower.notes == ("auto kept fp32: nothing else is faster here within the budget",)
    assert slower.reasons[1] == "not faster than fp32"
    assert faster.reasons == ("int8 is faster", "", "int8 is faster")
    assert faster.notes == ("auto chose int8: 1.50 [1.45, 1.55] × as fast as fp32 on this machine",)
