"""Energy per inference by power rail, under load and idle.

It is measured after the latencies, not during them, because reading a sensor takes CPU time.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from vitdeploy.evidence import Power, RailEnergy
from vitdeploy.measure.intervals import MIN_VALUES, median_interval
from vitdeploy.measure.power import sensors
from vitdeploy.measure.power.sensors import Counter, Rail
from vitdeploy.measure.power.tegrastats import parse_line

_SAMPLE_S = 0.02  # an INA3221 converts a channel in a millisecond and averages sixteen of them
_TEGRASTATS_MS = 100
_MIN_SAMPLES = 5  # of a window; with fewer, an integral is a guess
WINDOWS = 9
"""The measuring windows under load. The interval of the median of nine ignores one outlier on either side."""
_DIGITS = 6

PowerSample = tuple[float, Mapping[str, float]]
"""The time in seconds, and the watts of each rail."""


@dataclass
class Window:
    """The joules that a meter measured by rail, or the reason why there are none."""

    seconds: float = 0.0
    joules: dict[str, float] = field(default_factory=dict)
    reason: str = ""


class Meter(Protocol):
    """A way to measure energy on this machine."""

    source: str
    shortest_s: float
    """The shortest window with enough readings."""

    def window(self) -> AbstractContextManager[Window]:
        """Measure while the block runs, and fill in the window at its end."""


@dataclass(frozen=True)
class _Load:
    """A window under load: its readings, the inferences that ended in it, and the time that they took."""

    window: Window
    inferences: int
    seconds: float


def measure(
    run: Callable[[], object], seconds: float, meter: Meter, *, windows: int = WINDOWS, idle: bool = True
) -> Power:
    """Measure the energy of one `run`, by rail, with an interval.

    The machine idles for `seconds`. Then it repeats `run` in several windows, which take `seconds` together, or longer
    if the meter or one run needs that. Each window gives the energy of one run; the result is their median. If a
    window has too few readings, the result has no rails and says why.

    Args:
        run: runs one inference.
        seconds: the idle time, and the time under load.
        meter: see `find_meter`.
        windows: the number of windows under load; from six on, there is an interval.
        idle: measure the idle power first. Without it, the machine stays as hot as it is.
    """
    resting = Window()
    if idle:
        with meter.window() as resting:
            time.sleep(seconds)
    before = sensors.read_throttle_events()
    loads = []
    for _ in range(windows):
        load = _run_window(run, max(seconds / windows, meter.shortest_s), meter)
        if not load.window.joules:
            return Power(source=meter.source, why=load.window.reason or f"{meter.source} gave no reading")
        loads.append(load)
    throttled = sensors.describe_throttling(before, sensors.read_throttle_events())
    rails = set.intersection(*(set(load.window.joules) for load in loads))
    names = [name for name in loads[0].window.joules if name in rails]
    return Power(
        source=meter.source,
        rails=tuple(_describe_rail(name, loads, resting) for name in names),
        total=sensors.find_total(rails),
        seconds=round(sum(load.window.seconds for load in loads), 3),
        inferences=sum(load.inferences for load in loads),
        throttled=throttled or "",
    )


def summarize(windows: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Return the energy of one inference in mJ, and its 95 % interval where there are windows enough for one.

    Args:
        windows: the energy of one inference in mJ, in each measuring window.
    """
    middle, low, high = median_interval(windows)
    return middle, (low, high) if len(windows) >= MIN_VALUES else None


def _run_window(run: Callable[[], object], seconds: float, meter: Meter) -> _Load:
    """Repeat `run` for `seconds`, once at least, and measure meanwhile."""
    with meter.window() as window:
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds or not count:
            run()
            count += 1
    return _Load(window, count, passed)


def find_meter() -> tuple[Meter | None, str]:
    """Return the best meter of this machine, or None and the reason."""
    rails, no_rails = sensors.find_rails()
    if rails:
        return RailMeter(rails), ""
    if shutil.which("tegrastats"):
        return TegrastatsMeter(), ""
    counters, no_counters = sensors.find_counters()
    return (CounterMeter(counters), "") if counters else (None, f"{no_rails}; {no_counters}")


class RailMeter:
    """Samples power monitors in a thread."""

    source = "hwmon"
    shortest_s = 0.25

    def __init__(self, rails: Sequence[Rail]) -> None:
        self._rails = rails

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Measure while the block runs."""
        samples: list[PowerSample] = []
        stop, window = threading.Event(), Window()

        def sample() -> None:
            while True:
                try:
                    samples.append((time.perf_counter(), {rail.name: rail.watts() for rail in self._rails}))
                except (OSError, ValueError) as error:
                    window.reason = f"a power monitor stopped answering: {error}"
                    return
                if stop.wait(_SAMPLE_S):
                    return

        thread = threading.Thread(target=sample, name="power", daemon=True)
        thread.start()
        try:
            yield window
        finally:
            stop.set()
            thread.join()
            _fill(window, samples)


class TegrastatsMeter:
    """Reads the output of tegrastats."""

    source = "tegrastats"
    shortest_s = 1.0  # it starts anew for each window

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Measure while the block runs."""
        samples: list[PowerSample] = []
        window = Window()
        command = ["tegrastats", "--interval", str(_TEGRASTATS_MS)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            lines = process.stdout

            def read() -> None:
                for line in lines or ():
                    now, watts = time.perf_counter(), parse_line(line).watts
                    samples.extend([(now, watts)] if watts else ())

            thread = threading.Thread(target=read, name="power", daemon=True)
            thread.start()
            try:
                yield window
            finally:
                process.terminate()
                thread.join()
                _fill(window, samples)


class CounterMeter:
    """Reads energy counters before and after the block."""

    source = "rapl"
    shortest_s = 0.1  # a counter is updated every millisecond

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = counters

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Measure while the block runs."""
        window, start = Window(), time.perf_counter()
        before = self._read(window)
        try:
            yield window
        finally:
            window.seconds = time.perf_counter() - start
            after = self._read(window)
            if not window.reason:
                pairs = zip(self._counters, before, after, strict=True)
                window.joules = {c.name: subtract_readings(first, last, c.wraps_at) for c, first, last in pairs}

    def _read(self, window: Window) -> list[float]:
        try:
            return [counter.joules() for counter in self._counters]
        except (OSError, ValueError) as error:
            window.reason = f"an energy counter stopped answering: {error}"
            return []


def subtract_readings(before: float, after: float, wraps_at: float) -> float:
    """Return the joules between two readings of a counter that may have wrapped once.

    It cannot wrap twice: at 300 W a counter of 262 kJ lasts a quarter of an hour, and a window takes some seconds.
    """
    return after - before if after >= before else after + wraps_at - before


def integrate(samples: Sequence[PowerSample]) -> dict[str, float]:
    """Return joules by rail, by the trapezoidal rule. Rails that are missing in a sample are left out."""
    names = set.intersection(*(set(watts) for _, watts in samples)) if samples else set()
    steps = list(pairwise(samples))
    return {
        name: sum((end - start) * (a[name] + b[name]) / 2 for (start, a), (end, b) in steps)
        for name in (samples[0][1] if samples else ())
        if name in names
    }


def _fill(window: Window, samples: Sequence[PowerSample]) -> None:
    if window.reason:  # the meter stopped before the end of the window
        return
    if len(samples) < _MIN_SAMPLES:
        window.reason = f"the power sensor gave only {len(samples)} readings: measure longer"
        return
    window.seconds = samples[-1][0] - samples[0][0]
    window.joules = integrate(samples)


def _describe_rail(name: str, loads: Sequence[_Load], idle: Window) -> RailEnergy:
    """Return power under load and idle, and the energy of one inference (idle power included)."""
    joules = [load.window.joules[name] for load in loads]
    idle_joules = idle.joules.get(name)
    windows = tuple(
        round(1e3 * energy / load.window.seconds * load.seconds / load.inferences, _DIGITS)
        for energy, load in zip(joules, loads, strict=True)
    )
    middle, interval = summarize(windows)
    return RailEnergy(
        name=name,
        watts=sum(joules) / sum(load.window.seconds for load in loads),
        idle_watts=idle_joules / idle.seconds if idle_joules is not None and idle.seconds else None,
        millijoules=middle,
        windows=windows,
        millijoules_ci95=interval,
    )
