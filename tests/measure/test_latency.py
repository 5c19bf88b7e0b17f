import gc
import math
import time
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest

from vitdeploy import environment
from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Bench
from vitdeploy.measure import conditions, latency, stopwatch
from vitdeploy.measure.latency import MAX_ROUNDS, MIN_BLOCKS, MIN_ROUNDS, measure, measure_reopened
from vitdeploy.measure.stopwatch import MIN_RUNS, warm_up
from vitdeploy.progress import Silent

FEED = {"x": np.zeros((1, 3), np.float32)}
QUIET = conditions.Block(others=0.0, steal=0.0, switches=0.0, mhz=None)


class Clock:
    """Time that passes only while a session runs, so that the tests do not depend on this machine."""

    def __init__(self) -> None:
        self.ns = 0

    def perf_counter_ns(self) -> int:
        return self.ns

    def perf_counter(self) -> float:
        return self.ns / 1e9


class Fake:
    """A session that takes `ms` (a function of the run's number and of the time of day) on the clock."""

    threads: int | None = 2
    effective: ClassVar[dict[str, str]] = {"precision": "fp32"}

    def __init__(self, clock: Clock, name: str, ms: object, output: float = 1.0) -> None:
        self.clock, self.name, self.ms, self.output, self.calls, self.log = clock, name, ms, output, 0, []

    def run(self, feeds: object) -> dict[str, np.ndarray]:
        self.calls += 1
        self.clock.ns += int(1e6 * (self.ms(self.calls, self.clock.ns / 1e9) if callable(self.ms) else self.ms))
        self.log.append(self.clock.ns)
        return {"y": np.array([self.output])}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    monkeypatch.setattr(latency, "time", clock)
    monkeypatch.setattr(conditions, "settle", lambda: None)
    monkeypatch.setattr(conditions, "take_snapshot", lambda: None)
    monkeypatch.setattr(conditions, "describe_block", lambda before, after: QUIET)
    return clock


def test_ratio_throughput_and_raw_samples(clock: Clock) -> None:
    bench = measure([Fake(clock, "a", 15.0), Fake(clock, "b", 10.0)], [FEED] * 2, batch=4, seconds=4)
    assert (bench.valid, bench.doubts) == (True, ())
    a, b = bench.runs
    assert (a.name, a.speedup, a.p50_ms, a.p99_ms, a.batch) == ("a", None, 15.0, 15.0, 4)
    assert b.speedup is not None
    assert b.speedup.ratio == pytest.approx(1.5)
    assert b.speedup.ci95 == (pytest.approx(1.5), pytest.approx(1.5))
    assert b.throughput_ips == pytest.approx(400)
    assert b.samples == sum(map(len, b.blocks))
    assert len(a.blocks) == len(b.blocks) >= 20
    assert (a.threads, a.effective) == (2, {"precision": "fp32"})
    assert Bench.model_validate_json(bench.model_dump_json()) == bench


def test_the_ratio_is_stable_while_the_machine_changes_its_speed(clock: Clock) -> None:
    def changing(ms: float) -> object:
        return lambda number, now: ms * (2 + math.sin(now))

    bench = measure(
        [Fake(clock, "a", changing(15.0)), Fake(clock, "b", changing(10.0))], [FEED] * 2, batch=1, seconds=20
    )
    assert bench.valid, bench.doubts
    assert bench.runs[1].speedup is not None
    assert bench.runs[1].speedup.ratio == pytest.approx(1.5, rel=0.03)
    assert bench.runs[0].p99_ms > 1.8 * bench.runs[0].p50_ms / 1.5


def test_order_inside_a_block_is_random_but_seeded(clock: Clock) -> None:
    def turns(seed: int) -> list[str]:
        sides = [Fake(clock, "a", 30.0), Fake(clock, "b", 30.0)]
        start = clock.ns
        measure(sides, [FEED] * len(sides), batch=1, seconds=4, seed=seed)
        order = sorted((at - start, side.name) for side in sides for at in side.log)
        return [name for _, name in order]

    assert turns(0) == turns(0) != turns(1)
    assert "abba" in "".join(turns(0)).replace("aaaa", "a").replace("bbbb", "b")


def test_the_first_run_of_a_turn_is_not_counted(clock: Clock) -> None:
    last: list[str] = []

    def slow_after(name: str, ms: float) -> object:
        def latency_ms(number: int, now: float) -> float:
            switched = not last or last[-1] != name
            last.append(name)
            return 10 * ms if switched else ms

        return latency_ms

    bench = measure([Fake(clock, n, slow_after(n, 20.0)) for n in ("a", "b")], [FEED] * 2, batch=1, seconds=4)
    assert {sample for run in bench.runs for block in run.blocks for sample in block} == {20.0}


def test_a_slow_model_gets_the_least_number_of_blocks(clock: Clock) -> None:
    warnings: list[str] = []

    class Listener(Silent):
        def warn(self, message: str) -> None:
            warnings.append(message)

    bench = measure(
        [Fake(clock, "a", 900.0), Fake(clock, "b", 600.0)], [FEED] * 2, batch=1, seconds=1, progress=Listener()
    )
    assert [len(run.blocks) for run in bench.runs] == [MIN_BLOCKS, MIN_BLOCKS]
    assert {len(block) for run in bench.runs for block in run.blocks} == {MIN_RUNS}
    assert bench.valid  # too few samples for a p99 are a warning, no doubt about the ratio
    assert "p99 of 30 samples" in warnings[0]


def test_a_turn_of_a_fast_model_has_a_least_length(clock: Clock) -> None:
    bench = measure([Fake(clock, "a", 0.05), Fake(clock, "b", 0.1)], [FEED] * 2, batch=1, seconds=1)
    assert min(sum(block) for run in bench.runs for block in run.blocks) >= 19.9


def test_one_session_alone_has_no_speedup(clock: Clock) -> None:
    bench = measure([Fake(clock, "a", 12.0)], [FEED], batch=1, seconds=2)
    assert bench.valid
    assert bench.runs[0].speedup is None


def test_warm_up_ends_when_steady_and_is_not_counted(clock: Clock) -> None:
    session = Fake(clock, "a", lambda number, now: 100.0 if number < 8 else 5.0)
    bench = measure([session], [FEED], batch=1, seconds=20)
    assert bench.runs[0].p99_ms == 5.0
    assert len(bench.runs[0].blocks[0]) == 100  # planned for 5 ms, not for what the first runs took


def test_warm_up_is_bounded(clock: Clock) -> None:
    ready = warm_up(Fake(clock, "a", lambda number, now: 10.0 * 1.02**number), FEED, 1.0)
    assert not ready.warm_up.steady
    assert 1 <= ready.warm_up.seconds < 1.1
    ready = warm_up(Fake(clock, "a", 10.0), FEED, 1.0)
    assert (ready.warm_up.steady, ready.warm_up.runs) == (True, 10)
    slow = warm_up(Fake(clock, "a", 3000.0), FEED, 1.0)
    assert (slow.warm_up.runs, slow.run_s) == (2, 3.0)  # the first one allocates, so there is always a second


def test_a_model_that_still_gets_faster_is_not_warm(clock: Clock) -> None:
    ready = warm_up(Fake(clock, "a", lambda number, now: 50.0 * 0.9**number if number < 20 else 5.0), FEED, 1.0)
    assert ready.warm_up.steady
    assert ready.warm_up.runs > 20
    assert ready.run_s == 0.005


def test_timing_ends_when_the_interval_is_narrow_or_the_time_is_up(clock: Clock) -> None:
    steady = measure([Fake(clock, n, 20.0) for n in "ab"], [FEED] * 2, batch=1, seconds=20, narrow=0.005)
    assert steady.stopped == "narrow"
    assert len(steady.runs[0].blocks) == 2 * MIN_BLOCKS
    rng = np.random.default_rng(0)
    loose = Fake(clock, "b", lambda number, now: 20.0 * float(np.exp(0.1 * rng.standard_normal())))
    bench = measure([Fake(clock, "a", 20.0), loose], [FEED] * 2, batch=1, seconds=8, narrow=0.005)
    assert (bench.stopped, bench.seconds) == ("time", pytest.approx(8, rel=0.1))
    sides = [Fake(clock, "a", 20.0), Fake(clock, "c", 20.0), loose]  # one narrow interval of two is not enough
    assert measure(sides, [FEED] * 3, batch=1, seconds=8, narrow=0.005).stopped == "time"


class Opened(Fake):
    """A session that may be used only while it is open."""

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.name = "closed"


def rounds(clock: Clock, factor: object, seconds: float = 12.0) -> Bench:
    """Time a, and b with a latency that changes each time it is opened."""
    count = 0

    def opened() -> Opened:
        nonlocal count
        count += 1
        return Opened(clock, "b", 10.0 * factor(count))  # type: ignore[operator]

    return measure_reopened([lambda: Opened(clock, "a", 10.0), opened], [FEED] * 2, batch=1, seconds=seconds)


def test_every_round_opens_anew(clock: Clock) -> None:
    bench = rounds(clock, lambda number: 1.0)
    assert (bench.stopped, len(bench.runs[1].rounds)) == ("narrow", MIN_ROUNDS)
    assert sum(bench.runs[1].rounds) == len(bench.runs[1].blocks)
    assert bench.runs[1].warm_up is not None
    assert bench.seconds < 12


def test_the_warm_up_is_that_of_the_first_opening(clock: Clock) -> None:
    """Later openings find the code and the files in the caches."""
    latencies = iter([lambda number, now: 50.0 * 0.9**number if number < 20 else 5.0])
    openers = [lambda: Opened(clock, "a", 5.0), lambda: Opened(clock, "b", next(latencies, 5.0))]
    bench = measure_reopened(openers, [FEED] * 2, batch=1, seconds=12)
    warm_ups = [run.warm_up.runs for run in bench.runs if run.warm_up is not None]
    assert warm_ups[0] == 10
    assert warm_ups[1] > 20


def test_differences_between_openings_widen_the_interval(clock: Clock) -> None:
    bench = rounds(clock, lambda number: 1.01 if number % 2 else 0.99)
    assert bench.stopped == "time"
    assert MIN_ROUNDS < len(bench.runs[1].rounds) <= MAX_ROUNDS
    assert bench.runs[1].speedup is not None
    low, high = bench.runs[1].speedup.ci95
    assert (low, high) == (pytest.approx(1 / 1.01), pytest.approx(1 / 0.99))
    assert bench.valid


def test_models_that_open_slowly_get_fewer_rounds(clock: Clock) -> None:
    def slowly(number: int) -> float:
        clock.ns += int(4e9)
        return 1.01 if number % 2 else 0.99

    bench = rounds(clock, slowly)
    assert MIN_ROUNDS < len(bench.runs[1].rounds) <= 36 / 4
    assert bench.seconds < 12


def test_the_interval_ignores_one_slow_opening(clock: Clock) -> None:
    bench = rounds(clock, lambda number: 1.2 if number == 3 else 1.0 + 1e-3 * (number % 3))
    assert bench.runs[1].speedup is not None
    assert bench.runs[1].speedup.ci95[0] > 1 / 1.02


def test_the_cores_that_were_used_are_recorded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "usable_cpus", lambda: (3,))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    bench = measure([Fake(clock, "a", 10.0)], [FEED], batch=1, seconds=2)
    assert (bench.cpus, bench.pinned) == ((3,), True)


def test_percentiles_have_intervals(clock: Clock) -> None:
    bench = measure(
        [Fake(clock, "a", lambda number, now: 50.0 if number % 20 == 0 else 10.0)], [FEED], batch=1, seconds=9
    )
    run = bench.runs[0]
    assert (run.p50_ms, run.p50_ci95, run.p99_ms, run.p99_ci95) == (10.0, (10.0, 10.0), 50.0, (50.0, 50.0))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (10.0, lambda number, now: 8.0 if now < 6 else 7.0, "drifted by +14%"),
        (10.0, lambda number, now: 8.0 * (1.5 + 0.5 * math.sin(3 * now)), "varies by"),
    ],
)
def test_doubts_about_the_ratio(clock: Clock, a: object, b: object, message: str) -> None:
    bench = measure([Fake(clock, "a", a), Fake(clock, "b", b)], [FEED] * 2, batch=1, seconds=10)
    assert not bench.valid
    assert message in bench.doubts[0]
    assert "the speed-up of b" in bench.doubts[0]


def test_a_doubt_about_one_ratio_is_that_run_s(clock: Clock) -> None:
    drifting = Fake(clock, "b", lambda number, now: 8.0 if now < 6 else 7.0)
    sides = [Fake(clock, "a", 10.0), drifting, Fake(clock, "c", 5.0)]
    bench = measure(sides, [FEED] * 3, batch=1, seconds=12)
    assert [len(run.doubts) for run in bench.runs] == [0, 1, 0]
    assert bench.runs[1].doubts == bench.doubts


def test_doubts_about_one_session_alone(clock: Clock) -> None:
    bench = measure([Fake(clock, "a", lambda number, now: 10.0 + now)], [FEED], batch=1, seconds=10)
    assert any("the latency of a drifted" in doubt for doubt in bench.doubts)


def test_doubt_when_the_sides_use_different_threads(clock: Clock) -> None:
    one = Fake(clock, "b", 10.0)
    one.threads = 1
    bench = measure([Fake(clock, "a", 10.0), one], [FEED] * 2, batch=1, seconds=2)
    assert bench.doubts == ("b uses 1 threads, but a uses 2",)
    one.threads = None  # an engine that does not say, or a GPU
    assert measure([Fake(clock, "a", 10.0), one], [FEED] * 2, batch=1, seconds=2).valid


def test_doubt_when_outputs_are_not_finite(clock: Clock) -> None:
    bench = measure([Fake(clock, "a", 10.0), Fake(clock, "b", 10.0, math.nan)], [FEED] * 2, batch=1, seconds=2)
    assert bench.doubts == ("b: outputs are not finite",)
    assert [run.finite for run in bench.runs] == [True, False]
    assert [run.doubts for run in bench.runs] == [(), bench.doubts]


def test_outputs_that_are_not_finite_in_one_opening_are_not_forgotten(clock: Clock) -> None:
    outputs = iter([math.nan])
    openers = [lambda: Opened(clock, "a", 10.0), lambda: Opened(clock, "b", 10.0, next(outputs, 1.0))]
    bench = measure_reopened(openers, [FEED] * 2, batch=1, seconds=12)
    assert len(bench.runs[1].rounds) >= MIN_ROUNDS
    assert [run.finite for run in bench.runs] == [True, False]
    assert not bench.valid


def test_doubts_about_the_machine_are_passed_on(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "describe_block", lambda before, after: conditions.Block(0.5, 0.0, 0.0, None))
    bench = measure([Fake(clock, "a", 10.0), Fake(clock, "b", 10.0)], [FEED] * 2, batch=1, seconds=2)
    assert "other processes used 50%" in bench.doubts[0]


@pytest.mark.parametrize(
    ("count", "batch", "seconds"), [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, math.nan), (1, 1, math.inf)]
)
def test_nothing_to_time_is_an_error(clock: Clock, count: int, batch: int, seconds: float) -> None:
    with pytest.raises(MeasureError, match="nothing to time"):
        measure([Fake(clock, "a", 1.0)] * count, [FEED] * count, batch=batch, seconds=seconds)


def test_garbage_collection_is_off_while_timing_and_back_after_an_interrupt(clock: Clock) -> None:
    enabled = []

    def interrupted(number: int, now: float) -> float:
        enabled.append(gc.isenabled())
        if number == 200:
            raise KeyboardInterrupt
        return 10.0

    with pytest.raises(KeyboardInterrupt):
        measure([Fake(clock, "a", interrupted)], [FEED], batch=1, seconds=60)
    assert enabled[0]
    assert not enabled[-1]
    assert gc.isenabled()


def test_progress_adds_up_to_all(clock: Clock) -> None:
    done: list[int] = []

    class Listener(Silent):
        def step(self, title: str, total: int | None = None):  # type: ignore[no-untyped-def]
            return _Counting(done if total == 100 else [])

    class _Counting:
        def __init__(self, into: list[int]) -> None:
            self.into = into

        def __enter__(self) -> object:
            return self.into.append

        def __exit__(self, *_: object) -> None:
            return None

    measure([Fake(clock, "a", 10.0)], [FEED], batch=1, seconds=2, progress=Listener())
    assert sum(done) == 100
    assert min(done) >= 0


class Busy:
    """Burns CPU time of its thread, so another process stretches it like any real work."""

    threads = 1
    effective: ClassVar[dict[str, str]] = {}

    def __init__(self, name: str, ms: float) -> None:
        self.name, self.ns = name, int(ms * 1e6)

    def run(self, feeds: object) -> dict[str, np.ndarray]:
        until = time.thread_time_ns() + self.ns
        while time.thread_time_ns() < until:
            pass
        return {}


@pytest.mark.timing
def test_a_known_ratio_on_this_machine() -> None:
    for _ in range(3):
        bench = measure([Busy("a", 15.0), Busy("b", 10.0)], [FEED] * 2, batch=1, seconds=1.5)
        if bench.valid:
            break
    else:
        pytest.skip(f"this machine is too busy to time anything: {bench.doubts}")
    assert bench.runs[1].speedup is not None
    assert bench.runs[1].speedup.ratio == pytest.approx(1.5, rel=0.05)
