"""Power sensors of the kernel: INA3221 and INA238 of a Jetson, RAPL of Intel and AMD, throttle counters.

hwmon gives millivolts, milliamperes and microwatts (Linux, Documentation/hwmon/sysfs-interface.rst). powercap gives
microjoules, in a register that wraps around (Documentation/power/powercap/powercap.rst). A sensor that is missing, or
that only root can read, gives a reason instead of a figure, never zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

HWMON, POWERCAP = Path("/sys/class/hwmon"), Path("/sys/class/powercap")
_MONITORS = ("ina3221", "ina238", "ina226", "ina219")
_THROTTLE = "soctherm_oc"
TOTALS = ("VDD_IN", "VIN", "5V_IN")
"""Rails that feed the whole module or board: of Orin NX and Nano, Thor's carrier, Xavier NX. AGX Orin has none."""


@dataclass(frozen=True)
class Rail:
    """A power rail of a Jetson, and the function that reads it."""

    name: str
    watts: Callable[[], float]


@dataclass(frozen=True)
class Counter:
    """An energy counter: its name, the function that reads it, and the joules at which it wraps."""

    name: str
    joules: Callable[[], float]
    wraps_at: float


def find_rails(root: Path | None = None) -> tuple[tuple[Rail, ...], str]:
    """Return the rails that can be read; if there are none, the reason."""
    root = root or HWMON
    rails: dict[str, Rail] = {}
    refusal = ""
    for folder in sorted(root.glob("hwmon*")):
        if _read_text(folder / "name") not in _MONITORS:
            continue
        for rail in _list_rails(folder):
            try:
                rail.watts()
            except (OSError, ValueError) as error:
                refusal = f"the power monitor {folder.name} cannot be read: {_describe_error(error)}"
                continue
            rails.setdefault(rail.name, rail)
    return tuple(rails.values()), "" if rails else refusal or "this machine has no power monitor (INA3221, INA238)"


def find_counters(root: Path | None = None) -> tuple[tuple[Counter, ...], str]:
    """Return the RAPL domains that can be read; if there are none, the reason.

    These are packages and memory, but not cores and uncore, which are part of a package.
    """
    counters: list[Counter] = []
    refusal = ""
    for folder in sorted((root or POWERCAP).glob("intel-rapl:*")):
        if folder.name.count(":") > 1 and _read_text(folder / "name") != "dram":
            continue
        energy = folder / "energy_uj"
        try:
            limit = _read_number(folder / "max_energy_range_uj") / 1e6
            _read_number(energy)
        except (OSError, ValueError) as error:
            refusal = f"RAPL cannot be read: {_describe_error(error)}"
            continue
        name = _read_text(folder / "name") or folder.name
        if folder.name.count(":") > 1:
            package = _read_text(folder.parent / folder.name.rpartition(":")[0] / "name")
            name = f"{package or 'package'} {name}"
        counters.append(Counter(name, _micro_reader(energy), limit))
    return tuple(counters), "" if counters else refusal or "this machine has no RAPL energy counters"


def read_throttle_events(root: Path | None = None) -> Mapping[str, int] | None:
    """Return how often over-current protection has throttled this board since its start, by cause.

    None if the board does not count that.
    """
    for folder in sorted((root or HWMON).glob("hwmon*")):
        if _read_text(folder / "name") == _THROTTLE:
            counts = {}
            for path in sorted(folder.glob("oc*_event_cnt")):
                try:
                    counts[path.name.removesuffix("_event_cnt")] = int(_read_number(path))
                except (OSError, ValueError):
                    continue
            return counts or None
    return None


def describe_throttling(before: Mapping[str, int] | None, after: Mapping[str, int] | None) -> str | None:
    """Return what throttled the board between two readings; None if nothing is known to have."""
    if before is None or after is None:
        return None
    growth = {name: count - before.get(name, 0) for name, count in after.items()}
    causes = [f"{name} {count} times" for name, count in growth.items() if count > 0]
    return f"the board throttled itself for over-current: {', '.join(causes)}" if causes else None


def find_total(names: Collection[str]) -> str | None:
    """Return the rail that feeds all others; None if there is none."""
    return next((name for name in TOTALS if name in names), None)


def _list_rails(folder: Path) -> list[Rail]:
    """Return a monitor's rails: its own power, or voltage times current of each labelled channel."""
    power = folder / "power1_input"
    if power.exists():
        labels = ("label", "power1_label", "in1_label")
        name = next((text for label in labels if (text := _read_text(folder / label))), folder.name)
        return [Rail(name, _micro_reader(power))]
    rails = []
    for current in sorted(folder.glob("curr*_input")):
        number = re.findall(r"\d+", current.name)[0]
        voltage, name = folder / f"in{number}_input", _read_text(folder / f"in{number}_label")
        if name and voltage.exists():
            rails.append(Rail(name, _product_reader(voltage, current)))
    return rails


def _product_reader(voltage: Path, current: Path) -> Callable[[], float]:
    return lambda: _read_number(voltage) * _read_number(current) / 1e6  # mV · mA = µW


def _micro_reader(path: Path) -> Callable[[], float]:
    return lambda: _read_number(path) / 1e6  # microwatts, microjoules


def _read_number(path: Path) -> float:
    value = float(path.read_text(encoding="ascii", errors="replace"))
    if not math.isfinite(value):
        raise ValueError(f"{path.name} holds {value}")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _describe_error(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"{reason} (it may need root)" if isinstance(error, PermissionError) else str(reason)
