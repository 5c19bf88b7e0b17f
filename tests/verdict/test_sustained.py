"""The gate judges the steady latency and energy of a bench that has them; throttling is no doubt then."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.evidence import MANIFEST, bench
from vitdeploy.errors import MeasureError
from vitdeploy.evidence import BlockState, Check, DeviceTime, Power, RailEnergy, Sustained, SustainedBlock
from vitdeploy.frozen import replace
from vitdeploy.measure.power import summarize as summarize_windows
from vitdeploy.measure.sustained import WINDOW, summarize
from vitdeploy.recipe import GateSpec
from vitdeploy.verdict import Case, judge
from vitdeploy.verdict._recompute import recompute_sustained

THROTTLED = "the board throttled itself for over-current: oc1 3 times"


def sustained(*, cold: float = 10.0, hot: float = 20.0, drift: float = 0.0) -> Sustained:
    """A board that is slow once it is hot; `drift`: by how much each block is slower than the one before."""
    state = BlockState(others=0.0, steal=0.0, switches=1.0, mhz=1500.0, throttled=1)
    medians = [cold, *(hot * (1 + drift) ** n for n in range(WINDOW))]
    course = [
        SustainedBlock(minutes=n / 12, p50_ms=ms, celsius=71.0, gpu_mhz=None, state=state)
        for n, ms in enumerate(medians, 1)
    ]
    windows = (48.0, 49.0, 49.5, 50.0, 50.0, 50.5, 51.0, 52.0, 90.0)
    middle, interval = summarize_windows(windows)
    rail = RailEnergy(
        name="VIN", watts=9, idle_watts=None, millijoules=middle, windows=windows, millijoules_ci95=interval
    )
    power = Power(source="hwmon", rails=(rail,), total="VIN", throttled=THROTTLED)
    return summarize(course, [(ms,) * 9 for ms in medians[1:]], 20, batch=1, power=power)


def check(limits: GateSpec, *doubts: str, **more: Any) -> Check:
    (only,) = judge(Case(None, bench(1.45, 1.5, 1.55, *doubts, **more), None, manifest=MANIFEST), limits).checks
    return only


@pytest.mark.parametrize(("limit", "status"), [(20.1, "pass"), (19.9, "fail")])
def test_the_steady_latency_is_judged_not_the_cold_one(limit: float, status: str) -> None:
    result = check(GateSpec(max_latency_ms=limit), "the machine was slowed down", sustained=sustained())
    assert (result.status, result.observed) == (status, 20.0)
    assert result.why.endswith("sustained, steady after 2 min at 71 °C")


def test_the_steady_energy_is_judged_and_throttling_is_no_doubt() -> None:
    result = check(GateSpec(max_energy_mj=60), "the machine was slowed down", sustained=sustained())
    assert result.status == "pass"
    assert "VIN, which feeds all others, takes 50 mJ" in result.why
    assert result.why.endswith("sustained")


@pytest.mark.parametrize("limits", [GateSpec(max_latency_ms=1000), GateSpec(max_energy_mj=1000)])
def test_a_load_that_was_not_steady_decides_nothing(limits: GateSpec) -> None:
    result = check(limits, sustained=sustained(drift=0.01))
    assert result.status == "invalid"
    assert result.why.startswith("doubtful: not steady after 20 minutes")


def test_a_latency_limit_names_the_time_on_the_device_too() -> None:
    time = DeviceTime(
        name="tensorrt-fp16", source="session", samples=100, device_p50_ms=8, device_p90_ms=9, device_p99_ms=9.5,
        end_to_end_p50_ms=16, end_to_end_p90_ms=17, end_to_end_p99_ms=18,
    )  # fmt: skip
    run = bench().runs[1].model_copy(update={"p50_ci95": (15.0, 16.0), "role": "artifact", "manifest": MANIFEST})
    words = {limit: check(GateSpec(max_latency_ms=limit), runs=(run,), device=(time,)) for limit in (20, 10, 5)}
    assert [words[limit].status for limit in (20, 10, 5)] == ["pass", "fail", "fail"]
    assert "8 ms of it on the device (within the limit)" in words[10].why
    assert "8 ms of it on the device (above the limit)" in words[5].why


@pytest.mark.parametrize("field", ["celsius", "minutes"])
def test_a_course_with_what_is_no_number_is_refused(field: str) -> None:
    steady = sustained()
    course = (*steady.course[:-1], replace(steady.course[-1], **{field: math.nan}))
    with pytest.raises(MeasureError, match="is no number"):
        recompute_sustained(replace(steady, course=course))
