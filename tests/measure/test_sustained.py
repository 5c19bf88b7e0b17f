"""A sustained load on a virtual clock: boards that heat up and throttle, that are steady at once, or never."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Power, RailEnergy, Sustained
from vitdeploy.frozen import replace
from vitdeploy.measure.conditions import Snapshot
from vitdeploy.measure.sustained import MAX_SLOPE, WINDOW, Sensors, is_steady, run_until_steady
from vitdeploy.session import Feeds, SequentialSession
from vitdeploy.verdict._recompute import recompute_sustained

FEEDS = {"x": np.zeros((1, 3), np.float32)}


class Board(SequentialSession):
    """A board of which temperature and latency are functions of the minutes under load; its clock is virtual."""

    name, threads = "board", 1
    effective: Mapping[str, str] = {}

    def __init__(
        self,
        latency_ms: Callable[[float], float],
        celsius: Callable[[float], float | None] = lambda _: None,
        *,
        throttled: Callable[[float], int] = lambda _: 0,
        gpu_mhz: Callable[[float], float | None] = lambda _: None,
        others: float = 0.0,
        output: float = 1.0,
    ) -> None:
        self._latency_ms, self._throttled, self._others, self._output = latency_ms, throttled, others, output
        self._now = 0.0
        self.sensors = Sensors(
            clock=lambda: self._now,
            snapshot=self._read,
            celsius=lambda: celsius(self._now / 60),
            gpu_mhz=lambda: gpu_mhz(self._now / 60),
        )

    def run(self, feeds: Feeds) -> dict[str, Any]:
        self._now += self._latency_ms(self._now / 60) / 1e3
        return {"y": np.full(len(feeds["x"]), self._output, np.float32)}

    def close(self) -> None: ...

    def _read(self) -> Snapshot:
        busy = self._others * self._now * 64  # more cores than any machine of the tests has
        return Snapshot(self._now, 0.0, busy, 0.0, 0, 1500.0, self._throttled(self._now / 60))


def load(board: Board, minutes: float = 30.0) -> Sustained:
    return run_until_steady(board, FEEDS, minutes, batch=1, sensors=board.sensors)


def heats_up(minutes: float) -> float:
    return 70 - 40 * math.exp(-minutes / 2)


def test_a_board_that_throttles_is_measured_when_it_is_steady_and_that_is_a_finding() -> None:
    hot = Board(
        lambda m: 100.0 if m < 4 else 140.0,
        heats_up,
        throttled=lambda m: max(int(12 * (m - 4)), 0),
        gpu_mhz=lambda m: 1000.0 if m < 4 else 700.0,
    )
    result = load(hot)
    assert result.steady
    assert result.doubts == ()
    assert result.p50_ms == pytest.approx(140.0)
    assert result.course[0].p50_ms == pytest.approx(100.0)
    assert result.judged_by == "temperature and latency"
    assert result.findings[0] == "the latency changed by +40%, from 100 ms cold to 140 ms at the end"
    assert "slowed down in" in result.findings[1]
    assert result.findings[2] == "the GPU clock went from 1000 to 700 MHz"
    assert 6 < result.course[-1].minutes < 12, "the slope of the temperature falls below the limit after 8 minutes"
    end = result.course[-1].minutes - WINDOW * 5 / 60 / 2
    assert 40 / 2 * math.exp(-end / 2) < 1.3 * MAX_SLOPE


def test_a_latency_that_still_changes_is_not_steady_though_the_temperature_is() -> None:
    result = load(Board(lambda m: 100.0 + 5 * m, lambda _: 50.0), minutes=4)
    assert not result.steady
    assert len(result.course) == pytest.approx(4 * 12, abs=3)
    assert result.doubts[0].startswith("not steady after 4 minutes: in the last blocks the latency changes by +")


def test_a_temperature_that_still_rises_is_not_steady_though_the_latency_is() -> None:
    result = load(Board(lambda _: 100.0, lambda m: 40 + m), minutes=4)
    assert not result.steady
    assert "the temperature by +1 °C a minute" in result.doubts[0]


def test_without_a_thermal_sensor_the_latency_alone_decides_and_that_is_said() -> None:
    result = load(Board(lambda _: 100.0))
    assert result.steady
    assert len(result.course) == WINDOW, "one window is the least"
    assert result.judged_by == "latency alone: no thermal zone of this machine can be read"
    assert result.findings == ()


def test_other_processes_are_a_doubt_under_a_sustained_load_too() -> None:
    result = load(Board(lambda _: 100.0, lambda _: 50.0, others=0.5))
    assert result.doubts[0].startswith("other processes used")


def test_outputs_that_are_not_finite_are_a_doubt() -> None:
    assert load(Board(lambda _: 100.0, output=math.nan)).doubts == ("outputs are not finite",)


def test_a_slow_model_has_a_sample_in_every_block() -> None:
    result = load(Board(lambda _: 12_000.0, lambda _: 50.0), minutes=3)
    assert (result.samples, len(result.course)) == (WINDOW, WINDOW)


def test_many_samples_are_thinned_evenly() -> None:
    blocks = load(Board(lambda _: 1.0)).blocks
    assert all(500 < len(block) <= 1000 for block in blocks)


def test_fewer_blocks_than_a_window_are_never_steady() -> None:
    assert not is_steady(load(Board(lambda _: 100.0)).course[:-1])


def test_the_figures_follow_from_the_blocks_and_a_forged_one_is_corrected() -> None:
    true = load(Board(lambda m: 100.0 if m < 1 else 120.0, heats_up), minutes=10)
    rail = RailEnergy(name="VDD_IN", watts=9, idle_watts=None, millijoules=1, windows=(8.0, 9.0, 10.0))
    forged = replace(
        true, p50_ms=1.0, p50_ci95=(0.9, 1.1), steady=False, findings=(), power=Power(rails=(rail,), total="VDD_IN")
    )
    fresh = recompute_sustained(forged)
    assert replace(fresh, power=None) == true
    assert fresh.power is not None
    assert fresh.power.rails[0].millijoules == 9.0


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: {"blocks": s.blocks[:3]},
        lambda s: {"course": s.course[:3]},
        lambda s: {"blocks": ((-1.0,), *s.blocks[1:])},
        lambda s: {"blocks": ((1.0,), *s.blocks[1:])},
        lambda s: {"batch": 0},
    ],
    ids=["few blocks", "short course", "negative", "another median", "no batch"],
)
def test_a_run_that_cannot_be_is_refused(damage: Callable[[Sustained], dict[str, Any]]) -> None:
    true = load(Board(lambda _: 100.0))
    with pytest.raises(MeasureError):
        recompute_sustained(replace(true, **damage(true)))
