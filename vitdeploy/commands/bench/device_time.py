"""Beside the latencies of `bench`: time on the device apart from time waited for, and energy. It runs alone here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vitdeploy import targets
from vitdeploy.artifact import Artifact
from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import Bench, DeviceTime, Power, Run
from vitdeploy.measure import power
from vitdeploy.measure.statistics import percentile
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import compiled_of
from vitdeploy.session import Feeds, Session
from vitdeploy.targets import Outside

_SHARE = 0.3  # of the time that the latencies took
_MIN_S, _MAX_S = 1.0, 5.0
_WARM_RUNS = 5


def observe(
    artifact: Artifact, open_session: Callable[[], Session], feeds: Feeds, seconds: float, progress: Progress
) -> dict[str, Any]:
    """What a `Bench` also tells about its first artifact, as its fields: `device` and `power`."""
    meter, why = power.find_meter()
    on_device = targets.find(artifact.manifest.recipe.target).runs_on != "cpu"
    if meter is None and not on_device:  # nothing to look at: opening it once more may mean compiling it once more
        return {"power": Power(why=why)}
    share = min(max(_SHARE * seconds, _MIN_S), _MAX_S)
    with open_session() as session:
        for _ in range(_WARM_RUNS):
            session.run(feeds)
        timed = _device_time(session, feeds, share)
        drawn = Power(why=why)
        if meter is not None:
            with progress.step("Measure power"):
                drawn = power.measure(lambda: session.run(feeds), share, meter)
    outside = _told_outside(artifact, feeds, share, progress)
    beside = outside and _summed_up(outside.name, outside.name, outside.device_ms, outside.end_to_end_ms)
    return {"device": tuple(found for found in (timed, beside) if found is not None), "power": drawn}


def outside_only(artifact: Artifact, feeds: Feeds, seconds: float, why: str, progress: Progress) -> Bench | None:
    """What the backend's own stopwatch alone can tell where the artifact cannot be opened from Python; or None.

    Nothing was timed beside it, so there is no speed-up and the measurement is no valid comparison.
    """
    found = _told_outside(artifact, feeds, seconds, progress)
    if found is None:
        return None
    timed = _summed_up(found.name, found.name, found.device_ms, found.end_to_end_ms)
    batch = len(next(iter(feeds.values())))
    run = Run(
        name=timed.name,
        batch=batch,
        samples=timed.samples,
        p50_ms=timed.end_to_end_p50_ms,
        p90_ms=timed.end_to_end_p90_ms,
        p99_ms=timed.end_to_end_p99_ms,
        throughput_ips=round(batch * 1e3 / float(np.mean(found.end_to_end_ms)), 3),
        speedup=None,
    )
    return Bench(valid=False, doubts=(f"timed by {timed.source} alone: {why}",), runs=(run,), device=(timed,))


def _device_time(session: Session, feeds: Feeds, seconds: float) -> DeviceTime | None:
    """None where the session has no clock of the device's."""
    if getattr(session, "device_ms", None) is None:
        return None
    device: list[float] = []
    waited: list[float] = []
    deadline = time.perf_counter() + seconds
    while not device or time.perf_counter() < deadline:
        start = time.perf_counter_ns()
        session.run(feeds)
        waited.append((time.perf_counter_ns() - start) / 1e6)
        device.append(float(session.device_ms))  # type: ignore[attr-defined]  # asked for above
    return _summed_up(session.name, "session", device, waited, session.effective.get("cuda_graph", ""))


def _told_outside(artifact: Artifact, feeds: Feeds, seconds: float, progress: Progress) -> Outside | None:
    """The backend's own stopwatch; that it fails says nothing against the artifact, and is told."""
    target = targets.find(artifact.manifest.recipe.target)
    try:
        return target.time_outside(compiled_of(artifact), {name: value.shape for name, value in feeds.items()}, seconds)
    except VitdeployError as error:
        progress.warn(str(error))
        return None


def _summed_up(
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
