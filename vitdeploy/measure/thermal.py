"""Temperatures and clocks of the kernel: thermal zones, cpufreq, devfreq. No root is needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_PLAUSIBLE_C = (-40.0, 150.0)  # zones without a sensor read -256 or 0x7fffffff


def read_celsius(root: Path = Path("/")) -> float | None:
    """Return the temperature of the hottest thermal zone; None if none can be read.

    Args:
        root: the folder that /sys is in.
    """
    low, high = _PLAUSIBLE_C
    values = (value / 1e3 for value in _read_numbers(root.glob("sys/class/thermal/thermal_zone*/temp")))
    return max((value for value in values if low < value < high), default=None)


def read_cpu_mhz(root: Path = Path("/")) -> float | None:
    """Return the clock of the fastest core; None if the system does not report it."""
    return _highest_mhz(root, "sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq", 1e3)


def read_gpu_mhz(root: Path = Path("/")) -> float | None:
    """Return the clock of an integrated GPU; None if the system does not report it."""
    return _highest_mhz(root, "sys/class/devfreq/*gpu*/cur_freq", 1e6)


def _highest_mhz(root: Path, pattern: str, per_mhz: float) -> float | None:
    return max((value / per_mhz for value in _read_numbers(root.glob(pattern))), default=None)


def _read_numbers(paths: Iterable[Path]) -> Iterator[float]:
    """Read the files that hold a number. Some zones and clocks cannot be read while their unit is asleep."""
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            continue
        if re.fullmatch(r"-?\d+", text):
            yield float(text)
