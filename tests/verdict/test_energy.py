"""The energy limit: judged by an interval over windows, of a rail that is named."""

from __future__ import annotations

from typing import Any

import pytest

from tests.evidence import MANIFEST, bench
from vitdeploy.evidence import Check, Power, RailEnergy
from vitdeploy.measure.power import summarize
from vitdeploy.recipe import GateSpec
from vitdeploy.verdict import Case, judge, recompute_bench

WINDOWS = (48.0, 49.0, 49.5, 50.0, 50.0, 50.5, 51.0, 52.0, 90.0)  # the interval is 49 to 52


def rail(name: str = "VDD_IN", windows: tuple[float, ...] = WINDOWS, **more: Any) -> RailEnergy:
    middle, interval = summarize(windows)
    facts: dict[str, Any] = {"watts": 10.0, "idle_watts": 4.5, "millijoules": middle, "millijoules_ci95": interval}
    return RailEnergy(name=name, windows=windows, **(facts | more))


def power(*rails: RailEnergy, total: str | None = "VDD_IN", **more: Any) -> Power:
    return Power(source="hwmon", rails=rails or (rail(),), total=total, seconds=5.0, inferences=1000, **more)


def check(limits: GateSpec, energy: Power | None, *doubts: str) -> Check:
    timing = bench(1.45, 1.5, 1.55, *doubts, power=energy)
    (only,) = judge(Case(None, timing, None, manifest=MANIFEST), limits).checks
    return only


@pytest.mark.parametrize(("limit", "status"), [(52.0, "pass"), (51.9, "invalid"), (49.0, "invalid"), (48.9, "fail")])
def test_energy_is_judged_by_its_interval(limit: float, status: str) -> None:
    result = check(GateSpec(max_energy_mj=limit), power())
    assert (result.name, result.status, result.observed) == ("energy (mJ)", status, 50.0)
    assert "VDD_IN, which feeds all others, takes 50 mJ a run, 95 % interval 49 to 52 over 9 windows" in result.why
    assert ("measure longer" in result.why) == (status == "invalid")


@pytest.mark.parametrize(
    ("energy", "reason"),
    [
        (None, "it was not measured: run vitdeploy bench again"),
        (Power(why="this machine has no power monitor"), "it was not measured: this machine has no power monitor"),
        (power(total=None), "no rail here feeds all others"),
        (power(rail(windows=(50.0,))), "1 reading of VDD_IN has no interval"),
        (power(rail().model_copy(update={"windows": (), "millijoules_ci95": None})),
         "1 reading of VDD_IN has no interval"),
        (power(throttled="the board throttled itself for over-current: oc1 3 times"), "doubtful: the board throttled"),
    ],
    ids=["not measured", "no monitor", "no total", "one reading", "older evidence", "throttled"],
)  # fmt: skip
def test_energy_that_proves_nothing_is_invalid(energy: Power | None, reason: str) -> None:
    result = check(GateSpec(max_energy_mj=1000), energy)
    assert result.status == "invalid"
    assert result.why.startswith(reason)


def test_a_doubtful_bench_has_no_energy_that_counts() -> None:
    result = check(GateSpec(max_energy_mj=1000), power(), "other processes used 40 % of the CPU")
    assert (result.status, result.why) == ("invalid", "doubtful: other processes used 40 % of the CPU")


def test_a_rail_can_be_named_where_none_is_the_total() -> None:
    energy = power(rail("VDD_GPU_SOC"), rail("VIN_SYS_5V0", tuple(2 * mj for mj in WINDOWS)), total=None)
    result = check(GateSpec(max_energy_mj=60, energy_rail="VDD_GPU_SOC"), energy)
    assert result.status == "pass"
    assert result.why.startswith("VDD_GPU_SOC, a part of the board, takes 50 mJ")
    assert check(GateSpec(max_energy_mj=60, energy_rail="VIN_SYS_5V0"), energy).status == "fail"
    missing = check(GateSpec(max_energy_mj=60, energy_rail="VDD_IN"), energy)
    assert missing.why == "there is no rail VDD_IN: there are VDD_GPU_SOC, VIN_SYS_5V0"


def test_the_energy_follows_from_its_windows() -> None:
    forged = power(rail(millijoules=5.0, millijoules_ci95=(4.0, 6.0)))
    fresh = recompute_bench(bench(power=forged)).power
    assert fresh is not None
    assert (fresh.rails[0].millijoules, fresh.rails[0].millijoules_ci95) == (50.0, (49.0, 52.0))
