"""Energy per inference, from the sensors of every Jetson, counters that wrap, and machines without sensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.measure import power
from vitdeploy.measure.power import (
    CounterMeter,
    RailMeter,
    TegrastatsMeter,
    integrate,
    measure,
    subtract_readings,
    summarize,
)
from vitdeploy.measure.power import sensors as power_sensors
from vitdeploy.measure.power.sensors import Counter, Rail, describe_throttling, find_rails, read_throttle_events
from vitdeploy.measure.power.tegrastats import Stats, parse_line

pytestmark = pytest.mark.timing  # meters are read on a real clock

# Forms of tegrastats by module and JetPack: Orin Nano on 6, AGX Orin on 6 and 7, Thor on 7.
ORIN_NANO = (
    "11-25-2026 10:15:02 RAM 2448/7620MB (lfb 7x4MB) SWAP 0/3810MB (cached 0MB) CPU [8%@729,0%@729,0%@729,1%@729,off,"
    "off] EMC_FREQ 0%@2133 GR3D_FREQ 14%@[407] NVDEC off VIC off APE 174 cpu@47.343C soc2@46.468C soc0@47.156C "
    "gpu@48.5C tj@49.5C soc1@49.5C cv1@-256C VDD_IN 4756mW/4712mW VDD_CPU_GPU_CV 680mW/651mW VDD_SOC 1479mW/1479mW"
)
AGX_ORIN = (
    "RAM 8122/62796MB (lfb 1x4MB) CPU [20%@1728,3%@1728] GR3D_FREQ 14%@[407,407] CPU@77.281C tj@77.281C "
    "VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 5040mW/5020mW VDDQ_VDD2_1V8AO 705mW/700mW"
)
AGX_ORIN_7 = AGX_ORIN.replace("GR3D_FREQ 14%@[407,407]", "GR3D_FREQ 0%@[1300,1300]")
THOR = (
    "RAM 9000/125772MB (lfb 10x4MB) CPU [1%@2601,0%@2601] EMC_FREQ 0%@4266 GR3D_FREQ @[1000,1000,1000] NVENC0_FREQ off "
    "cpu@40.1C tj@41.0C VDD_GPU 6021mW/6000mW VDD_CPU_SOC_MSS 8041mW/8000mW VIN 30500mW/30000mW"
)
OLDER = "RAM 1/2MB GR3D_FREQ 10%@1000 VDD_IN 2532/2698 VDD_CPU_GPU_CV 41/41"


@pytest.mark.parametrize(
    ("line", "watts", "percent", "mhz"),
    [
        (ORIN_NANO, {"VDD_IN": 4.756, "VDD_CPU_GPU_CV": 0.68, "VDD_SOC": 1.479}, 14, (407,)),
        (
            AGX_ORIN,
            {"VDD_GPU_SOC": 3.15, "VDD_CPU_CV": 14.312, "VIN_SYS_5V0": 5.04, "VDDQ_VDD2_1V8AO": 0.705},
            14,
            (407, 407),
        ),
        (
            AGX_ORIN_7,
            {"VDD_GPU_SOC": 3.15, "VDD_CPU_CV": 14.312, "VIN_SYS_5V0": 5.04, "VDDQ_VDD2_1V8AO": 0.705},
            0,
            (1300, 1300),
        ),
        (THOR, {"VDD_GPU": 6.021, "VDD_CPU_SOC_MSS": 8.041, "VIN": 30.5}, None, (1000, 1000, 1000)),
        (OLDER, {"VDD_IN": 2.532, "VDD_CPU_GPU_CV": 0.041}, 10, (1000,)),
    ],
    ids=["orin-nano", "agx-orin", "agx-orin-jetpack-7", "thor", "older"],
)
def test_tegrastats_of_every_board(line: str, watts: object, percent: int | None, mhz: tuple[int, ...]) -> None:
    found = parse_line(line)
    assert (found.watts, found.gpu_percent, found.gpu_mhz) == (watts, percent, mhz)
    assert "cv1" not in found.celsius, "a sensor that is off is no temperature"


def test_temperatures() -> None:
    assert parse_line(ORIN_NANO).celsius["tj"] == 49.5


@given(st.text() | st.text(alphabet="RAM VDD_IN0123456789mW/%@[],GR3D_FREQtj.C-"))
def test_no_line_crashes(line: str) -> None:
    assert isinstance(parse_line(line), Stats)


@given(st.sampled_from([ORIN_NANO, AGX_ORIN, THOR]), st.data())
def test_a_cut_line_invents_nothing(line: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(line)))
    whole = parse_line(line)
    found = parse_line(line[:cut])
    assert {name for name in found.watts if name not in whole.watts} == set()
    assert all(watts == whole.watts[name] for name, watts in found.watts.items())


def monitor(root: Path, number: int, kind: str, **files: object) -> Path:
    folder = root / f"hwmon{number}"
    folder.mkdir(parents=True)
    for name, text in {"name": kind, **files}.items():
        (folder / name).write_text(f"{text}\n")
    return folder


def ina3221(root: Path) -> None:
    """An Orin Nano's: three channels, and voltages over the shunts, which are no rails."""
    files: dict[str, object] = {}
    for number, (name, mv, ma) in enumerate(
        [("VDD_IN", 4968, 960), ("VDD_CPU_GPU_CV", 4960, 136), ("VDD_SOC", 4960, 296)], start=1
    ):
        files |= {f"in{number}_label": name, f"in{number}_input": mv, f"curr{number}_input": ma}
        files |= {f"in{number + 3}_input": 5, f"curr{number}_max": 32760}
    monitor(root, 1, "ina3221", **files)


def test_rails_of_ina3221_and_ina238(tmp_path: Path) -> None:
    monitor(tmp_path, 0, "nvme", temp1_input=40000)
    ina3221(tmp_path)
    monitor(tmp_path, 2, "ina238", label="VIN", power1_input=30_500_000, in1_input=19_900, curr1_input=1500)
    found, reason = find_rails(tmp_path)
    assert reason == ""
    assert {rail.name: round(rail.watts(), 3) for rail in found} == {
        "VDD_IN": 4.769, "VDD_CPU_GPU_CV": 0.675, "VDD_SOC": 1.468, "VIN": 30.5,
    }  # fmt: skip


def test_no_monitor_is_a_reason(tmp_path: Path) -> None:
    found, reason = find_rails(tmp_path)
    assert (found, reason) == ((), "this machine has no power monitor (INA3221, INA238)")


def test_a_monitor_that_does_not_answer_is_a_reason(tmp_path: Path) -> None:
    ina3221(tmp_path)
    (tmp_path / "hwmon1" / "curr1_input").write_text("\n")
    for number in (2, 3):
        (tmp_path / "hwmon1" / f"curr{number}_input").write_text("rubbish\n")
    found, reason = find_rails(tmp_path)
    assert found == ()
    assert reason.startswith("the power monitor hwmon1 cannot be read: could not convert")


def test_throttling_is_seen_in_the_counters(tmp_path: Path) -> None:
    assert read_throttle_events(tmp_path) is None
    folder = monitor(tmp_path, 3, "soctherm_oc", oc1_event_cnt=2, oc2_event_cnt=0, oc3_event_cnt="?", oc1_throt_en=1)
    before = read_throttle_events(tmp_path)
    assert before == {"oc1": 2, "oc2": 0}
    assert describe_throttling(before, read_throttle_events(tmp_path)) is None
    (folder / "oc1_event_cnt").write_text("5\n")
    assert (
        describe_throttling(before, read_throttle_events(tmp_path))
        == "the board throttled itself for over-current: oc1 3 times"
    )
    assert describe_throttling(None, before) is None, "without a reading before nothing is known"


@given(st.text(max_size=20))
def test_no_counter_file_crashes(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = monitor(Path(folder), 0, "soctherm_oc", oc1_event_cnt="")
        (path / "oc1_event_cnt").write_text(text, encoding="utf-8")
        assert read_throttle_events(Path(folder)) is None or read_throttle_events(Path(folder))


@given(st.lists(st.tuples(st.sampled_from(["in1_input", "in1_label", "curr1_input", "power1_input", "label"]),
                          st.text(max_size=12) | st.sampled_from(["1e999", "nan", "-1", "12\x00"]))))  # fmt: skip
def test_no_monitor_crashes_and_none_gives_what_is_no_number(files: list[tuple[str, str]]) -> None:
    import math
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = monitor(Path(folder), 0, "ina3221")
        for name, text in files:
            (path / name).write_text(text, encoding="utf-8")
        found, reason = find_rails(Path(folder))
        assert bool(found) != bool(reason)
        assert all(math.isfinite(rail.watts()) for rail in found)


def domain(root: Path, name: str, title: str, energy: object, limit: int = 262_143_328_850) -> None:
    folder = root / name
    folder.mkdir(parents=True)
    for file, text in {"name": title, "energy_uj": energy, "max_energy_range_uj": limit}.items():
        (folder / file).write_text(f"{text}\n")


def test_rapl_counts_packages_and_memory_once(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 1)
    domain(tmp_path, "intel-rapl:0:1", "dram", 2_000_000)
    found, reason = power_sensors.find_counters(tmp_path)
    assert reason == ""
    assert [counter.joules() for counter in found] == [5.0, 2.0]
    assert found[0].name == "package-0"
    assert found[0].wraps_at == pytest.approx(262_143.33)
    assert power_sensors.find_counters(tmp_path / "none") == ((), "this machine has no RAPL energy counters")


@pytest.mark.parametrize(("before", "after", "joules"), [(1.0, 3.5, 2.5), (99.0, 1.0, 2.0), (5.0, 5.0, 0.0)])
def test_a_counter_that_wrapped(before: float, after: float, joules: float) -> None:
    assert subtract_readings(before, after, 100.0) == joules


def test_energy_is_the_area_under_power() -> None:
    samples = [(0.0, {"a": 1.0, "b": 2.0}), (1.0, {"a": 3.0, "b": 2.0}), (3.0, {"a": 3.0})]
    assert integrate(samples) == {"a": 8.0}, "a rail that went missing is left out, not taken for zero"
    assert integrate([]) == {}


def busy(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def test_energy_of_one_inference() -> None:
    load = {"watts": 2.0}

    def run() -> None:
        load["watts"] = 10.0
        time.sleep(0.01)

    found = measure(run, 0.4, RailMeter([Rail("VDD_IN", lambda: load["watts"]), Rail("VDD_SOC", lambda: 1.0)]))
    whole, part = found.rails
    assert (whole.name, found.total, found.source) == ("VDD_IN", "VDD_IN", "hwmon")
    assert whole.watts == pytest.approx(10.0, rel=0.05)
    assert whole.idle_watts == pytest.approx(2.0)
    assert whole.millijoules == pytest.approx(10.0 * 1e3 * found.seconds / found.inferences, rel=0.1)
    assert part.millijoules == pytest.approx(whole.millijoules / 10, rel=0.05)
    assert found.inferences > 10
    assert found.why == ""
    assert len(whole.windows) == power.WINDOWS
    assert whole.millijoules_ci95 is not None
    low, high = whole.millijoules_ci95
    assert low <= whole.millijoules <= high
    assert summarize(whole.windows) == (whole.millijoules, whole.millijoules_ci95)


def test_the_interval_of_energy_is_over_windows_and_ignores_an_outlier_on_either_side() -> None:
    assert summarize((10.0, 10.1, 10.2, 10.3, 10.4, 10.5, 10.6, 10.7, 99.0)) == (10.4, (10.1, 10.7))
    assert summarize((1.0, 2.0, 3.0, 4.0, 5.0, 6.0)) == (3.5, (1.0, 6.0))
    assert summarize((1.0, 2.0, 3.0, 4.0, 5.0)) == (3.0, None), "five windows give no 95 % interval"


def test_energy_without_an_idle_window_says_no_idle_power(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RailMeter, "shortest_s", 0.1)
    meter = RailMeter([Rail("VDD_IN", lambda: 4.0)])
    (rail,) = measure(busy(0.01), 0.1, meter, windows=2, idle=False).rails
    assert (rail.idle_watts, rail.millijoules_ci95, len(rail.windows)) == (None, None, 2)
    assert rail.watts == pytest.approx(4.0)


def test_a_meter_that_says_too_little_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> float:
        raise OSError("gone")

    assert "stopped answering: gone" in measure(busy(0.01), 0.1, RailMeter([Rail("VDD_IN", fails)])).why
    monkeypatch.setattr(power, "_SAMPLE_S", 600.0)  # one reading, however long the machine stalls
    short = measure(busy(0.001), 0.001, RailMeter([Rail("VDD_IN", lambda: 1.0)]))
    assert "readings: measure longer" in short.why
    assert short.rails == ()


def test_rapl_over_a_window() -> None:
    readings = iter([0.0, 1.0, 99.0, 3.0])  # idle: 1 J; busy: wraps at 100
    meter = CounterMeter([Counter("package-0", lambda: next(readings), 100.0)])
    found = measure(busy(0.01), 0.05, meter, windows=1)
    (rail,) = found.rails
    assert (found.source, found.total) == ("rapl", None)
    assert rail.watts * found.seconds == pytest.approx(4.0, rel=0.01)


def test_a_monitor_that_stops_half_way_gives_no_figure() -> None:
    readings = iter([10.0] * 8)

    def watts() -> float:
        try:
            return next(readings)
        except StopIteration:
            raise OSError("gone") from None

    found = measure(busy(0.01), 0.5, RailMeter([Rail("VDD_IN", watts)]))
    assert found.rails == ()
    assert "stopped answering: gone" in found.why


def test_a_counter_that_stops_answering_is_a_reason() -> None:
    def reading() -> Iterator[float]:
        yield from (0.0, 1.0, 2.0)
        raise OSError("gone")

    readings = reading()
    found = measure(busy(0.001), 0.01, CounterMeter([Counter("package-0", lambda: next(readings), 100.0)]))
    assert (found.rails, found.why) == ((), "an energy counter stopped answering: gone")


def test_tegrastats_is_read_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\nwhile true; do echo '{ORIN_NANO}'; sleep 0.02; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(power_sensors, "HWMON", tmp_path / "none")
    meter, _ = power.find_meter()
    assert isinstance(meter, TegrastatsMeter)
    found = measure(busy(0.01), 0.4, meter, windows=1)
    assert {rail.name for rail in found.rails} == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
    assert found.rails[0].watts == pytest.approx(4.756)
    assert found.total == "VDD_IN"


def test_a_machine_without_any_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HWMON", "POWERCAP"):
        monkeypatch.setattr(power_sensors, name, tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    meter, reason = power.find_meter()
    assert meter is None
    assert reason == "this machine has no power monitor (INA3221, INA238); this machine has no RAPL energy counters"
