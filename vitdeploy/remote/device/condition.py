"""The state of a device that a measurement depends on, as far as it can be read without root."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from vitdeploy import environment
from vitdeploy.remote.device import clocks
from vitdeploy.remote.messages import Condition

_GIB = 2**30
# Major release of L4T -> JetPack; an unknown one is given as L4T alone.
_JETPACK = {"35": "5", "36": "6", "38": "7.0 or 7.1", "39": "7.2"}
_PLAUSIBLE_C = (-40.0, 150.0)  # zones without a sensor say -256 or 0x7fffffff


def condition(cache: Path, root: Path = Path("/")) -> Condition:
    """What can be read now; the rest is None with a reason in `unknown`.

    Args:
        cache: whose disk is looked at.
        root: where /proc and /sys are.
    """
    unknown: dict[str, str] = {}

    def known(name: str, value: float | None, why: str) -> float | None:
        if value is None:
            unknown[name] = why
        return value

    mode, told = clocks.power_mode()
    if mode is None:
        unknown["power_mode"] = told
    l4t = environment.host().jetpack
    if l4t is None:
        unknown["l4t"] = "there is no /etc/nv_tegra_release: not a Jetson"
    jetpack = _JETPACK.get(l4t.partition(".")[0]) if l4t else None
    if jetpack is None:
        unknown["jetpack"] = f"L4T {l4t} is newer than this vitdeploy" if l4t else unknown["l4t"]
    module = _text(root / "proc/device-tree/model")
    if module is None:
        unknown["module"] = "there is no device tree"
    tensorrt = _version("tensorrt")
    if tensorrt is None:
        unknown["tensorrt"] = "its Python bindings are not installed"
    return Condition(
        module=module,
        l4t=l4t,
        jetpack=jetpack,
        tensorrt=tensorrt,
        power_mode=None if mode is None else f"{mode} {told}".strip(),
        cpu_mhz=known(
            "cpu_mhz", _highest(root, "sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq", 1e3), "no cpufreq"
        ),
        gpu_mhz=known("gpu_mhz", _highest(root, "sys/class/devfreq/*gpu*/cur_freq", 1e6), "no devfreq of a GPU"),
        temperature_c=known("temperature_c", _temperature(root), "no thermal zone can be read"),
        memory_free_gib=round(psutil.virtual_memory().available / _GIB, 2),
        disk_free_gib=round(shutil.disk_usage(cache).free / _GIB, 2),
        unknown=unknown,
    )


def _temperature(root: Path) -> float | None:
    """The hottest zone, in °C."""
    low, high = _PLAUSIBLE_C
    values = (value / 1e3 for value in _numbers(root.glob("sys/class/thermal/thermal_zone*/temp")))
    return max((value for value in values if low < value < high), default=None)


def _highest(root: Path, pattern: str, per_mhz: float) -> float | None:
    return max((value / per_mhz for value in _numbers(root.glob(pattern))), default=None)


def _numbers(paths: Iterable[Path]) -> Iterable[float]:
    for path in paths:
        text = _text(path)
        if text is not None and re.fullmatch(r"-?\d+", text):
            yield float(text)


def _text(path: Path) -> str | None:
    """The contents; some zones and clocks refuse to be read while their unit is asleep."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
