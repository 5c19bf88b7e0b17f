"""What else the machine did while the stopwatch ran: the reasons to doubt a timing.

Everything is read between turns, never while a run is timed, and judged by its median over the blocks: a speed-up is
a median over blocks too, so what disturbed a few of them did not move it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from vitdeploy.environment import available_cores, usable_cpus
from vitdeploy.measure.power import sensors

# A multi-threaded engine waits at a barrier for its slowest thread, so a busy core costs the two sides differently.
# The kernel counts in ticks of 10 ms: in a block of a quarter of a second that is an uncertainty of 4 % on two cores.
MAX_OTHERS_SHARE = 0.15
# Stolen time is invisible to the guest's scheduler, so less of it already hurts.
MAX_STEAL_SHARE = 0.05
# Per second and core. The scheduler's slice is about 3 ms: threads that share their core with somebody are put aside
# 150 to 300 times a second; on quiet cores it happens 20 to 40 times, with ONNX Runtime's spinning threads up to 120
# (measured on 2 cores, Linux 6). What a process next door takes shows in MAX_OTHERS_SHARE long before.
MAX_SWITCHES = 200.0
# Clocks move the compute-bound side more than the memory-bound one.
MAX_CLOCK_CHANGE = 0.10
# A block in which a core was throttled timed something else; medians over the blocks bear a few of them.
MAX_THROTTLED_SHARE = 0.2

_QUIET_SHARE = 0.10  # of one core: an engine's threads have gone to sleep
_LOOK_S = 0.002  # long against a timer's resolution, short against the spinning
_MAX_SETTLE_S = 0.25  # Intel's OpenMP spins for 200 ms (KMP_BLOCKTIME), ONNX Runtime for about 25, libgomp for about 5


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment, in seconds of all cores that this process may use."""

    wall: float
    own: float
    busy: float
    steal: float
    switches: int
    mhz: float | None
    throttled: int = 0


@dataclass(frozen=True)
class Block:
    """What happened during one block: shares of the cores that this process gets time on, switches per second and core.

    `throttled`: how often a core was slowed down for heat or power, the board for over-current (Jetson), or the
    container stopped for its CPU quota.
    """

    others: float
    steal: float
    switches: float
    mhz: float | None
    throttled: int = 0


def snapshot() -> Snapshot:
    """The counters now."""
    cores = _cores()
    times = psutil.cpu_times(percpu=True)
    mine = [times[core] for core in cores if core < len(times)]
    return Snapshot(
        wall=time.perf_counter(),
        own=time.process_time(),
        busy=sum(t.user + t.system + _optional(t, "nice", "irq", "softirq") for t in mine),
        steal=sum(_optional(t, "steal") for t in mine),
        switches=_involuntary_switches(),
        mhz=_clock_mhz(),
        throttled=_throttle_events(cores),
    )


def between(before: Snapshot, after: Snapshot) -> Block:
    """What happened from `before` to `after`.

    Under a CPU quota there are more cores than this process gets time on: others disturb it as far as they use more
    than what is left over.
    """
    wall, cores = max(after.wall - before.wall, 1e-9), len(_cores())
    given = min(available_cores(), cores)
    others = (after.busy - before.busy - (after.own - before.own)) / wall
    return Block(
        others=max(others - (cores - given), 0.0) / given,
        steal=max((after.steal - before.steal) / (wall * cores), 0.0),
        switches=(after.switches - before.switches) / (wall * given),
        mhz=after.mhz,
        throttled=after.throttled - before.throttled,
    )


def doubts(blocks: Sequence[Block]) -> list[str]:
    """One line for each condition that was not good enough to time in; none when all were."""
    found = []
    others, steal, switches = (
        float(np.median([getattr(b, k) for b in blocks])) for k in ("others", "steal", "switches")
    )
    if others > MAX_OTHERS_SHARE:
        found.append(f"other processes used {others:.0%} of the CPU while timing (limit {MAX_OTHERS_SHARE:.0%})")
    if steal > MAX_STEAL_SHARE:
        found.append(f"the hypervisor took {steal:.0%} of the CPU while timing (limit {MAX_STEAL_SHARE:.0%})")
    if switches > MAX_SWITCHES:
        found.append(f"threads were put aside {switches:.0f} times a second and core (limit {MAX_SWITCHES:.0f})")
    throttled = sum(block.throttled > 0 for block in blocks)
    if throttled > MAX_THROTTLED_SHARE * len(blocks):
        found.append(f"the machine was throttled, for heat, power or a quota, in {throttled} of {len(blocks)} blocks")
    change = _clock_change([b.mhz for b in blocks if b.mhz])
    if abs(change) > MAX_CLOCK_CHANGE:
        found.append(f"the CPU clock moved by {change:+.0%} while timing (limit {MAX_CLOCK_CHANGE:.0%})")
    return found


def settle() -> None:
    """Sleep until the threads of the engine that ran last have gone to sleep too, or for a quarter of a second.

    Worker threads spin after a run in the hope of the next one, and a side that is timed meanwhile shares its cores
    with them.
    """
    deadline = time.perf_counter() + _MAX_SETTLE_S
    while time.perf_counter() < deadline:
        wall, own = time.perf_counter(), time.process_time()
        time.sleep(_LOOK_S)
        if time.process_time() - own < _QUIET_SHARE * (time.perf_counter() - wall):
            return


def _clock_change(mhz: Sequence[float]) -> float:
    third = len(mhz) // 3
    return float(np.median(mhz[-third:]) / np.median(mhz[:third]) - 1) if third else 0.0


def _cores() -> Sequence[int]:
    return usable_cpus()


def _optional(times: object, *names: str) -> float:
    return sum(float(getattr(times, name, 0.0)) for name in names)  # which ones there are depends on the system


def _involuntary_switches() -> int:
    """Of all threads of this process, where the system counts them."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _throttle_events(cores: Sequence[int]) -> int:
    """So far: of cores for heat or power (Intel), of a Jetson for over-current, of a container for its quota."""
    names = [f"/sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count" for core in cores]
    counts = [_number(name) for name in names]
    quota = re.search(r"^nr_throttled (\d+)$", _text("/sys/fs/cgroup/cpu.stat"), re.MULTILINE)
    board = sum((sensors.throttle_events() or {}).values())
    return sum(counts) + board + (int(quota[1]) if quota else 0)


def _number(path: str) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _clock_mhz() -> float | None:
    try:
        clock = getattr(psutil.cpu_freq(), "current", None)  # the whole is None on some systems
    except (OSError, NotImplementedError):
        return None
    return float(clock) if clock else None
