import threading
import time
from pathlib import Path

import pytest

from vitdeploy.measure import conditions
from vitdeploy.measure.conditions import Block, Snapshot, between, doubts, settle, snapshot
from vitdeploy.measure.power import sensors as power_sensors

QUIET = Block(others=0.01, steal=0.0, switches=20.0, mhz=2600.0)


def test_quiet_is_no_doubt() -> None:
    assert doubts([QUIET] * 12) == []
    assert doubts([Block(0.0, 0.0, 0.0, None)]) == []


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (Block(0.4, 0.0, 0.0, None), "other processes used 40% of the CPU"),
        (Block(0.0, 0.1, 0.0, None), "the hypervisor took 10%"),
        (Block(0.0, 0.0, 300.0, None), "put aside 300 times"),
        (Block(0.0, 0.0, 0.0, None, throttled=1), "throttled, for heat, power or a quota, in 7 of 12 blocks"),
    ],
)
def test_one_line_with_the_figure(block: Block, told: str) -> None:
    (line,) = doubts([block] * 7 + [QUIET] * 5)
    assert told in line
    assert doubts([block] * 2 + [QUIET] * 10) == []  # most blocks were quiet, and medians are over blocks


def test_clock_that_moves() -> None:
    slowing = [Block(0.0, 0.0, 0.0, 2600.0 - 50 * n) for n in range(12)]
    assert "clock moved by -16%" in doubts(slowing)[0]


def test_shares_between_two_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_cores", lambda: [0, 1])
    monkeypatch.setattr(conditions, "available_cores", lambda: 2)
    before = Snapshot(wall=10.0, own=1.0, busy=100.0, steal=5.0, switches=10, mhz=None)
    after = Snapshot(wall=20.0, own=11.0, busy=115.0, steal=6.0, switches=210, mhz=2600.0)
    assert between(before, after) == Block(others=0.25, steal=0.05, switches=10.0, mhz=2600.0)


def test_under_a_quota_others_disturb_only_beyond_what_is_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_cores", lambda: range(64))
    monkeypatch.setattr(conditions, "available_cores", lambda: 2)
    before = Snapshot(wall=0.0, own=0.0, busy=0.0, steal=0.0, switches=0, mhz=None)
    half = Snapshot(wall=10.0, own=20.0, busy=20.0 + 320.0, steal=0.0, switches=6000, mhz=None)
    assert between(before, half) == Block(others=0.0, steal=0.0, switches=300.0, mhz=None)
    full = Snapshot(wall=10.0, own=10.0, busy=640.0, steal=0.0, switches=0, mhz=None)
    assert between(before, full).others == pytest.approx(0.5)


def test_a_board_that_throttles_itself_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    protection = tmp_path / "hwmon3"
    protection.mkdir()
    (protection / "name").write_text("soctherm_oc\n")
    (protection / "oc1_event_cnt").write_text("2\n")
    monkeypatch.setattr(power_sensors, "HWMON", tmp_path)
    before = snapshot()
    (protection / "oc1_event_cnt").write_text("5\n")
    assert between(before, snapshot()).throttled >= 3


def test_own_work_is_not_that_of_others() -> None:
    before = snapshot()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    after = snapshot()
    assert after.own - before.own >= 0.3
    assert after.busy - before.busy >= 0.2
    assert 0 <= between(before, after).others <= 1


def test_settle_waits_for_threads_that_spin_but_not_for_ever() -> None:
    stop = time.perf_counter() + 0.06

    def spin() -> None:
        while time.perf_counter() < stop:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    settle()
    assert time.perf_counter() > stop - 0.02
    thread.join()
    start = time.perf_counter()
    stop = start + 0.6
    thread = threading.Thread(target=spin)
    thread.start()
    settle()
    assert time.perf_counter() - start < 0.5
    thread.join()
