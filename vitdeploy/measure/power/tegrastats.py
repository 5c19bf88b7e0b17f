"""The output of tegrastats, a Jetson's own monitor: one line for each interval.

    RAM 2448/7620MB … CPU [8%@729,0%@729,…] GR3D_FREQ 14%@[407,407] cpu@47.3C tj@49.5C VDD_IN 4756mW/4756mW VDD_CPU_…

A rail is `NAME present mW/average mW`. The average is since the start of tegrastats, so energy is integrated from the
present power.
GR3D_FREQ is `14%@1007` on JetPack 6, `0%@[1300,1300]` on JetPack 7, and `@[1000,1000,1000]`, without a load, on Thor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_RAIL = re.compile(r"(?<!\S)([A-Za-z][\w+.-]*) (\d+)(?:mW)?/(\d+)(?:mW)?(?!\S)")
_GPU = re.compile(r"GR3D_FREQ (?:(\d+)%)?(?:@\[?(\d+(?:,\d+)*)\]?)?")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C(?!\S)")
_ABSENT_C = -256.0  # the reading of a sensor whose part is switched off
_NO_RAILS = ("RAM", "SWAP", "IRAM")


@dataclass(frozen=True)
class Stats:
    """Watts by rail, the GPU's load in percent and clocks in MHz, temperatures in °C."""

    watts: Mapping[str, float] = field(default_factory=dict)
    gpu_percent: int | None = None
    gpu_mhz: tuple[int, ...] = ()
    celsius: Mapping[str, float] = field(default_factory=dict)


def parse_line(line: str) -> Stats:
    """Parse a line. Unknown parts of it are left out."""
    watts = {n: int(now) / 1e3 for n, now, _ in _RAIL.findall(line) if n not in _NO_RAILS}
    gpu = _GPU.search(line)
    percent, clocks = (gpu[1], gpu[2]) if gpu else (None, None)
    return Stats(
        watts=watts,
        gpu_percent=int(percent) if percent else None,
        gpu_mhz=tuple(int(mhz) for mhz in clocks.split(",")) if clocks else (),
        celsius={n: float(c) for n, c in _TEMPERATURE.findall(line) if float(c) > _ABSENT_C},
    )
