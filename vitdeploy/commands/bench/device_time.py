"""Device time and energy of an artifact, measured while it runs alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vitdeploy import targets
from vitdeploy.artifact import Artifact
from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import Bench, DeviceTime, Power, Run
from vitdeploy.measure import power
from vitdeploy.measure.statistics import percentile
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import read_compiled
from vitdeploy.session import Feeds, Session
from vitdeploy.targets import ExternalTimes

_SHARE = 0.3  # of the time for the latencies
_MIN_S, _MAX_S = 1.0, 5.0
_WARM_RUNS = 5


@dataclass(frozen=True)
class Alone:
    """Device time and power of one artifact while nothing else ran."""

    device: tuple[DeviceTime, ...]
    power: Power


def measure_alone(
    artifact: Artifact, open_session: Callable[[], Session], feeds: Feeds, seconds: float, progress: Progress
) -> Alone:
    """Measure device time if the device has a clock, and energy if the board has a meter.

    Args:
        artifact: the artifact to run.
        open_session: opens it.
        feeds: its inputs.
        seconds: the time that the latencies took. These measurements take a share of it.
        progress: gets the steps and warnings.
    """
    meter, reason = power.find_meter()
    on_device = targets.find(artifact.manifest.recipe.target).runs_on != "cpu"
    if meter is None and not on_device:  # there is nothing to measure, and opening it again may take a compilation
        return Alone((), Power(why=reason))
    share = min(max(_SHARE * seconds, _MIN_S), _MAX_S)
    with open_session() as session:
        for _ in range(_WARM_RUNS):
            session.run(feeds)
        by_session = _time_on_device(session, feeds, share)
        energy = Power(why=reason)
        if meter is not None:
            with progress.step("Measure power"):
                energy = power.measure(lambda: session.run(feeds), share, meter)
    outside = _time_outside(artifact, feeds, share, progress)
    times = [] if by_session is None else [by_session]
    if outside is not None:
        times.append(_summarize(outside.name, outside.name, outside.device_ms, outside.end_to_end_ms))
    return Alone(tuple(times), energy)


def bench_outside(artifact: Artifact, feeds: Feeds, seconds: float, reason: str, progress: Progress) -> Bench | None:
    """Time an artifact with its backend's own program, such as trtexec; None if the backend has none.

    This is for an artifact that Python cannot open; `reason` says why. Nothing is timed with it in turns, so there is
    no speed-up, and the result is not a valid comparison.
    """
    outside = _time_outside(artifact, feeds, seconds, progress)
    if outside is None:
        return None
    times = _summarize(outside.name, outside.name, outside.device_ms, outside.end_to_end_ms)
    batch = len(next(iter(feeds.values())))
    run = Run(
        name=times.name,
        batch=batch,
        samples=times.samples,
        p50_ms=times.end_to_end_p50_ms,
        p90_ms=times.end_to_end_p90_ms,
        p99_ms=times.end_to_end_p99_ms,
        throughput_ips=round(batch * 1e3 / float(np.mean(outside.end_to_end_ms)), 3),
        speedup=None,
        manifest=artifact.digest,
        role="artifact",
    )
    return Bench(valid=False, doubts=(f"timed alone, by {times.source}: {reason}",), runs=(run,), device=(times,))


def _time_on_device(session: Session, feeds: Feeds, seconds: float) -> DeviceTime | None:
    """Time runs by the device's own clock; None if the session has none."""
    if session.device_ms is None:
        return None
    device: list[float] = []
    end_to_end: list[float] = []
    deadline = time.perf_counter() + seconds
    while not device or time.perf_counter() < deadline:
        start = time.perf_counter_ns()
        session.run(feeds)
        end_to_end.append((time.perf_counter_ns() - start) / 1e6)
        device.append(session.device_ms)
    return _summarize(session.name, "session", device, end_to_end, session.effective.get("cuda_graph", ""))


def _time_outside(artifact: Artifact, feeds: Feeds, seconds: float, progress: Progress) -> ExternalTimes | None:
    """Time an artifact with the backend's own program. If that fails, there is only a warning."""
    target = targets.find(artifact.manifest.recipe.target)
    shapes = {name: value.shape for name, value in feeds.items()}
    try:
        return target.time_externally(read_compiled(artifact), shapes, seconds)
    except VitdeployError as error:
        progress.warn(str(error))
        return None


def _summarize(
    name: str, source: str, device: Sequence[float], waited: Sequence[float], cuda_graph: str = ""
) -> DeviceTime:
    return DeviceTime(
        name=name,
        source=source,
        samples=len(device),
        device_p50_ms=percentile(device, 50),
        device_p90_ms=percentile(device, 90),
        device_p99_ms=percentile(device, 99),
        end_to_end_p50_ms=percentile(waited, 50),
        end_to_end_p90_ms=percentile(waited, 90),
        end_to_end_p99_ms=percentile(waited, 99),
        cuda_graph=cuda_graph,
    )
