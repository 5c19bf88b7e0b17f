"""The state read from a device: a Jetson's /sys, and reasons for what cannot be read."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.remote.device.condition import read_condition


def put(root: Path, **files: str) -> None:
    """Files of a device; `__` in a name is a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_an_orin(tmp_path: Path) -> None:
    zone = "sys__class__thermal__thermal_zone"
    put(
        tmp_path,
        **{
            "proc__device-tree__model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            f"{zone}0__temp": "48500\n",
            f"{zone}1__temp": "51250\n",
            f"{zone}2__temp": "-256000\n",  # a unit that is asleep
            f"{zone}3__temp": "2147483647\n",
            f"{zone}4__temp": "",
            "sys__devices__system__cpu__cpufreq__policy0__scaling_cur_freq": "1510400\n",
            "sys__devices__system__cpu__cpufreq__policy4__scaling_cur_freq": "729600\n",
            "sys__class__devfreq__17000000.gpu__cur_freq": "624750000\n",
        },
    )
    state = read_condition(tmp_path, tmp_path)
    assert state.module == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (state.temperature_c, state.cpu_mhz, state.gpu_mhz) == (51.25, 1510.4, 624.75)
    assert not {"module", "temperature_c", "cpu_mhz", "gpu_mhz"} & set(state.unknown)


def test_what_cannot_be_read_has_a_reason_and_is_no_zero(tmp_path: Path) -> None:
    state = read_condition(tmp_path, tmp_path / "nothing")
    assert (state.module, state.temperature_c, state.cpu_mhz, state.gpu_mhz) == (None, None, None, None)
    assert {"module", "temperature_c", "cpu_mhz", "gpu_mhz"} <= set(state.unknown)
    assert all(state.unknown.values())
    assert state.disk_free_gib is not None
    assert state.disk_free_gib > 0
