import threading
import time
from pathlib import Path

import pytest

from vitdeploy.measure import conditions
from vitdeploy.measure.conditions import Block, Snapshot, describe_block, find_doubts, settle, take_snapshot
from vitdeploy.measure.power import sensors as power_sensors

QUIET = Block(others=0.01, steal=0.0, switches=20.0, mhz=2600.0)


def test_a_quiet_machine_gives_no_doubt() -> None:
    assert find_doubts([QUIET] * 12) == []
    assert find_doubts([Block(0.0, 0.0, 0.0, None)]) == []


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Block(0.4, 0.0, 0.0, None), "other processes used 40% of the CPU"),
        (Block(0.0, 0.1, 0.0, None), "the hypervisor took 10%"),
        (Block(0.0, 0.0, 300.0, None), "interrupted each core 300 times a second"),
        (Block(0.0, 0.0, 0.0, None, throttled=1), "slowed down in 7 of 12 blocks, for heat, power or a CPU quota"),
    ],
)
def test_each_doubt_is_one_line_with_its_figure(block: Block, message: str) -> None:
    (line,) = find_doubts([block] * 7 + [QUIET] * 5)
    assert message in line
    assert find_doubts([block] * 2 + [QUIET] * 10) == []  # most blocks were quiet, and the doubts are about medians


def test_a_clock_that_changes_is_a_doubt() -> None:
    slowing = [Block(0.0, 0.0, 0.0, 2600.0 - 50 * n) for n in range(12)]
    assert "clock changed by -16%" in find_doubts(slowing)[0]
    speeding = [Block(0.0, 0.0, 0.0, 2000.0 + 50 * n) for n in range(12)]
    assert "clock changed by +19%" in find_doubts(speeding)[0]


def test_shares_between_two_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_cores", lambda: [0, 1])
    monkeypatch.setattr(conditions, "available_cores", lambda: 2)
    before = Snapshot(wall=10.0, this_process=1.0, busy=100.0, steal=5.0, switches=10, mhz=None)
    after = Snapshot(wall=20.0, this_process=11.0, busy=115.0, steal=6.0, switches=210, mhz=2600.0)
    assert describe_block(before, after) == Block(others=0.25, steal=0.05, switches=10.0, mhz=2600.0)


def test_under_a_quota_others_count_only_beyond_the_free_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_cores", lambda: range(64))
    monkeypatch.setattr(conditions, "available_cores", lambda: 2)
    before = Snapshot(wall=0.0, this_process=0.0, busy=0.0, steal=0.0, switches=0, mhz=None)
    half = Snapshot(wall=10.0, this_process=20.0, busy=20.0 + 320.0, steal=0.0, switches=6000, mhz=None)
    assert describe_block(before, half) == Block(others=0.0, steal=0.0, switches=300.0, mhz=None)
    full = Snapshot(wall=10.0, this_process=10.0, busy=640.0, steal=0.0, switches=0, mhz=None)
    assert describe_block(before, full).others == pytest.approx(0.5)


def test_a_board_that_throttles_itself_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    protection = tmp_path / "hwmon3"
    protection.mkdir()
    (protection / "name").write_text("soctherm_oc\n")
    (protection / "oc1_event_cnt").write_text("2\n")
    monkeypatch.setattr(power_sensors, "HWMON", tmp_path)
    before = take_snapshot()
    (protection / "oc1_event_cnt").write_text("5\n")
    assert describe_block(before, take_snapshot()).throttled >= 3


@pytest.mark.timing
def test_work_of_this_process_is_not_counted_as_that_of_others() -> None:
    before = take_snapshot()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    after = take_snapshot()
    assert after.this_process - before.this_process >= 0.3
    assert after.busy - before.busy >= 0.2
    assert 0 <= describe_block(before, after).others <= 1


@pytest.mark.timing
def test_settle_waits_for_threads_that_spin_but_not_for_ever() -> None:
    def spin() -> None:
        while time.perf_counter() < stop:
            pass

    left = []
    for _ in range(5):  # on a busy machine the thread may get no core meanwhile, and so does not spin
        stop = time.perf_counter() + 0.06
        thread = threading.Thread(target=spin)
        thread.start()
        settle()
        left.append(stop - time.perf_counter())
        thread.join()
    assert min(left) < 0.02
    start = time.perf_counter()
    stop = start + 0.6
    thread = threading.Thread(target=spin)
    thread.start()
    settle()
    assert time.perf_counter() - start < 0.5
    thread.join()
