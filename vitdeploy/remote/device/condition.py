"""The state of a device that a measurement depends on, read without root."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from vitdeploy import environment
from vitdeploy.measure import thermal
from vitdeploy.remote.device import clocks
from vitdeploy.remote.messages import Condition

_GIB = 2**30
# Major release of L4T -> JetPack.
_JETPACK = {"35": "5", "36": "6", "38": "7.0 or 7.1", "39": "7.2"}


def read_condition(cache: Path, root: Path = Path("/")) -> Condition:
    """Read the device's state. A value that cannot be read is None, with a reason in `unknown`.

    Args:
        cache: a folder on the disk whose free space counts.
        root: the folder that /proc and /sys are in.
    """
    unknown: dict[str, str] = {}

    def explain_missing(name: str, value: float | None, reason: str) -> float | None:
        if value is None:
            unknown[name] = reason
        return value

    mode, name_or_reason = clocks.read_power_mode()
    if mode is None:
        unknown["power_mode"] = name_or_reason
    l4t = environment.host().jetpack
    if l4t is None:
        unknown["l4t"] = "not a Jetson: there is no /etc/nv_tegra_release"
    jetpack = _JETPACK.get(l4t.partition(".")[0]) if l4t else None
    if jetpack is None:
        unknown["jetpack"] = f"this vitdeploy does not know which JetPack has L4T {l4t}" if l4t else unknown["l4t"]
    module = _read_text(root / "proc/device-tree/model")
    if module is None:
        unknown["module"] = "there is no device tree"
    tensorrt = _package_version("tensorrt")
    if tensorrt is None:
        unknown["tensorrt"] = "TensorRT's Python bindings are not installed"
    cpu_mhz, gpu_mhz = thermal.read_cpu_mhz(root), thermal.read_gpu_mhz(root)
    return Condition(
        module=module,
        l4t=l4t,
        jetpack=jetpack,
        tensorrt=tensorrt,
        power_mode=None if mode is None else f"{mode} {name_or_reason}".strip(),
        cpu_mhz=explain_missing("cpu_mhz", cpu_mhz, "the system reports no CPU frequency (cpufreq)"),
        gpu_mhz=explain_missing("gpu_mhz", gpu_mhz, "the system reports no GPU frequency (devfreq)"),
        temperature_c=explain_missing("temperature_c", thermal.read_celsius(root), "no thermal zone can be read"),
        memory_free_gib=round(psutil.virtual_memory().available / _GIB, 2),
        disk_free_gib=round(shutil.disk_usage(cache).free / _GIB, 2),
        unknown=unknown,
    )


def _read_text(path: Path) -> str | None:
    """The contents of a file, or None. Some zones and clocks cannot be read while their unit is asleep."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
