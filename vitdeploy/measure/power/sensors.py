"""Power sensors as the kernel shows them: INA3221 and INA238 of a Jetson, RAPL of Intel and AMD, throttle counters.

hwmon counts in millivolts, milliamperes and microwatts (Linux, Documentation/hwmon/sysfs-interface.rst); powercap in
microjoules, in a register that wraps around (Documentation/power/powercap/powercap.rst). What is not there, or not
readable without root, is a reason and never a zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

HWMON, POWERCAP = Path("/sys/class/hwmon"), Path("/sys/class/powercap")
_MONITORS = ("ina3221", "ina238", "ina226", "ina219")
_THROTTLE = "soctherm_oc"
TOTALS = ("VDD_IN", "VIN", "5V_IN")
"""Rails that feed the whole module or board: Orin NX and Nano, Thor's carrier, Xavier NX. An AGX Orin has none."""


@dataclass(frozen=True)
class Rail:
    """A power rail of a Jetson, and how to read it."""

    name: str
    watts: Callable[[], float]


@dataclass(frozen=True)
class Counter:
    """An energy counter: what it has counted, and after how much it starts again, in joules."""

    name: str
    joules: Callable[[], float]
    wraps_at: float


def rails(root: Path | None = None) -> tuple[tuple[Rail, ...], str]:
    """The rails that can be read, and why there is none."""
    root = root or HWMON
    found: dict[str, Rail] = {}
    refused = ""
    for folder in sorted(root.glob("hwmon*")):
        if _text(folder / "name") not in _MONITORS:
            continue
        for rail in _rails_of(folder):
            try:
                rail.watts()
            except (OSError, ValueError) as error:
                refused = f"the power monitor {folder.name} cannot be read: {_said(error)}"
                continue
            found.setdefault(rail.name, rail)
    return tuple(found.values()), "" if found else refused or "this machine has no power monitor (INA3221, INA238)"


def counters(root: Path | None = None) -> tuple[tuple[Counter, ...], str]:
    """The RAPL domains that can be read (packages and what is beside them, not their parts), and why there is none."""
    found: list[Counter] = []
    refused = ""
    for folder in sorted((root or POWERCAP).glob("intel-rapl:*")):
        if folder.name.count(":") > 1 and _text(folder / "name") != "dram":
            continue  # cores and uncore are part of the package
        energy = folder / "energy_uj"
        try:
            limit = _number(folder / "max_energy_range_uj") / 1e6
            _number(energy)
        except (OSError, ValueError) as error:
            refused = f"RAPL cannot be read: {_said(error)}"
            continue
        name = _text(folder / "name") or folder.name
        if folder.name.count(":") > 1:
            name = f"{_text(folder.parent / folder.name.rpartition(':')[0] / 'name') or 'package'} {name}"
        found.append(Counter(name, _scaled(energy), limit))
    return tuple(found), "" if found else refused or "this machine shows no RAPL counters"


def throttle_events(root: Path | None = None) -> Mapping[str, int] | None:
    """How often over-current protection has throttled this board since it started, by cause; None: nobody counts."""
    for folder in sorted((root or HWMON).glob("hwmon*")):
        if _text(folder / "name") == _THROTTLE:
            counts = {}
            for path in sorted(folder.glob("oc*_event_cnt")):
                try:
                    counts[path.name.removesuffix("_event_cnt")] = int(_number(path))
                except (OSError, ValueError):
                    continue
            return counts or None
    return None


def throttled(before: Mapping[str, int] | None, after: Mapping[str, int] | None) -> str | None:
    """What throttled the board between two readings; None: nothing, or nobody counts."""
    grown = {name: count - (before or {}).get(name, 0) for name, count in (after or {}).items()}
    told = [f"{name} {count} times" for name, count in grown.items() if count > 0 and before is not None]
    return f"the board throttled itself for over-current: {', '.join(told)}" if told else None


def total_of(names: Mapping[str, object]) -> str | None:
    """The rail that is the total, where there is one."""
    return next((name for name in TOTALS if name in names), None)


def _rails_of(folder: Path) -> list[Rail]:
    """Voltage times current of each labelled channel; a monitor that multiplies itself is believed."""
    own = folder / "power1_input"
    if own.exists():
        name = next((text for f in ("label", "power1_label", "in1_label") if (text := _text(folder / f))), folder.name)
        return [Rail(name, _scaled(own))]
    found = []
    for current in sorted(folder.glob("curr*_input")):
        number = re.findall(r"\d+", current.name)[0]
        voltage, name = folder / f"in{number}_input", _text(folder / f"in{number}_label")
        if name and voltage.exists():
            found.append(Rail(name, _product(voltage, current)))
    return found


def _product(voltage: Path, current: Path) -> Callable[[], float]:
    return lambda: _number(voltage) * _number(current) / 1e6  # mV · mA = µW


def _scaled(path: Path) -> Callable[[], float]:
    return lambda: _number(path) / 1e6  # microwatts, microjoules


def _number(path: Path) -> float:
    value = float(path.read_text(encoding="ascii", errors="replace"))
    if not math.isfinite(value):
        raise ValueError(f"{path.name} says {value}")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _said(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"{reason} (it may take root)" if isinstance(error, PermissionError) else str(reason)
