"""The state of the machine during a timing, and the doubts that follow from it.

All counters are read between turns, never while a run is timed. They are judged by their median over the blocks: a
speed-up is a median over blocks too, so a disturbance in a few blocks does not move it.
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
from vitdeploy.evidence import BlockState
from vitdeploy.measure.power import sensors

# A multi-threaded engine waits for its slowest thread, so a busy core slows the two sides by different amounts.
# The kernel counts CPU time in ticks of 10 ms: an uncertainty of 4 % for a block of 0.25 s on two cores.
MAX_OTHERS_SHARE = 0.15
# The guest's scheduler cannot see stolen time and cannot work around it, so the limit is lower.
MAX_STEAL_SHARE = 0.05
# Involuntary context switches per second and core. The scheduler's time slice is about 3 ms: a thread that shares its
# core is interrupted 150 to 300 times a second. On quiet cores it is 20 to 40 times, or up to 120 with ONNX Runtime's
# spinning threads (measured on 2 cores, Linux 6). Another process exceeds MAX_OTHERS_SHARE long before this limit.
MAX_SWITCHES = 200.0
# A change of clock affects a compute-bound side more than a memory-bound one.
MAX_CLOCK_CHANGE = 0.10
# A block with a throttled core timed a slower machine. The median over the blocks tolerates a few of them.
MAX_THROTTLED_SHARE = 0.2

_QUIET_SHARE = 0.10  # of one core: below it, the engine's threads are asleep
_POLL_S = 0.002  # long compared with a timer's resolution, short compared with the spinning
_MAX_SETTLE_S = 0.25  # Intel's OpenMP spins for 200 ms (KMP_BLOCKTIME), ONNX Runtime for about 25, libgomp for about 5


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment. Times are in seconds, summed over the cores that this process may use.

    Attributes:
        wall: the clock.
        this_process: CPU time of this process, all threads.
        busy: CPU time of all processes, this one included.
        steal: time that the hypervisor gave to other guests.
        switches: involuntary context switches of this process.
        mhz: the CPU's clock; None if the system does not report it.
        throttled: throttling events so far, see `Block`.
    """

    wall: float
    this_process: float
    busy: float
    steal: float
    switches: int
    mhz: float | None
    throttled: int = 0


@dataclass(frozen=True)
class Block:
    """The state of the machine during one block.

    Attributes:
        others: CPU time of other processes, as a share of the cores that this process gets time on.
        steal: time that the hypervisor gave to other guests, as a share of the cores.
        switches: involuntary context switches of this process, per second and core.
        mhz: the CPU's clock at the end of the block.
        throttled: how often a core was slowed down for heat or power, the board for over-current (Jetson), or the
            container was stopped for its CPU quota.
    """

    others: float
    steal: float
    switches: float
    mhz: float | None
    throttled: int = 0


def take_snapshot() -> Snapshot:
    """Read the counters now."""
    cores = _cores()
    times = psutil.cpu_times(percpu=True)
    usable = [times[core] for core in cores if core < len(times)]
    return Snapshot(
        wall=time.perf_counter(),
        this_process=time.process_time(),
        busy=sum(t.user + t.system + _optional(t, "nice", "irq", "softirq") for t in usable),
        steal=sum(_optional(t, "steal") for t in usable),
        switches=_count_involuntary_switches(),
        mhz=_read_clock_mhz(),
        throttled=_count_throttle_events(cores),
    )


def describe_block(before: Snapshot, after: Snapshot) -> Block:
    """Return the state of the machine between two snapshots.

    Under a CPU quota there are more cores than this process gets time on. Other processes then count only as far as
    they use more than the cores that the quota leaves free.
    """
    wall, cores = max(after.wall - before.wall, 1e-9), len(_cores())
    granted = min(available_cores(), cores)
    others = (after.busy - before.busy - (after.this_process - before.this_process)) / wall
    return Block(
        others=max(others - (cores - granted), 0.0) / granted,
        steal=max((after.steal - before.steal) / (wall * cores), 0.0),
        switches=(after.switches - before.switches) / (wall * granted),
        mhz=after.mhz,
        throttled=after.throttled - before.throttled,
    )


def find_doubts(blocks: Sequence[Block] | Sequence[BlockState]) -> list[str]:
    """Return one line for each condition that makes a timing doubtful."""
    reasons = []
    others, steal, switches = (
        float(np.median([getattr(b, k) for b in blocks])) for k in ("others", "steal", "switches")
    )
    if others > MAX_OTHERS_SHARE:
        reasons.append(f"other processes used {others:.0%} of the CPU while timing (limit {MAX_OTHERS_SHARE:.0%})")
    if steal > MAX_STEAL_SHARE:
        reasons.append(f"the hypervisor took {steal:.0%} of the CPU while timing (limit {MAX_STEAL_SHARE:.0%})")
    if switches > MAX_SWITCHES:
        reasons.append(
            f"other processes interrupted each core {switches:.0f} times a second (limit {MAX_SWITCHES:.0f})"
        )
    throttled = sum(block.throttled > 0 for block in blocks)
    if throttled > MAX_THROTTLED_SHARE * len(blocks):
        reasons.append(
            f"the machine was slowed down in {throttled} of {len(blocks)} blocks, for heat, power or a CPU quota"
        )
    change = _clock_change([b.mhz for b in blocks if b.mhz])
    if abs(change) > MAX_CLOCK_CHANGE:
        reasons.append(f"the CPU clock changed by {change:+.0%} while timing (limit {MAX_CLOCK_CHANGE:.0%})")
    return reasons


def settle() -> None:
    """Wait until the threads of the previous engine sleep, at most a quarter of a second.

    Worker threads spin for a while after a run, waiting for the next one. A side that is timed meanwhile would share
    its cores with them.
    """
    deadline = time.perf_counter() + _MAX_SETTLE_S
    while time.perf_counter() < deadline:
        wall, cpu = time.perf_counter(), time.process_time()
        time.sleep(_POLL_S)
        if time.process_time() - cpu < _QUIET_SHARE * (time.perf_counter() - wall):
            return


def _clock_change(mhz: Sequence[float]) -> float:
    third = len(mhz) // 3
    return float(np.median(mhz[-third:]) / np.median(mhz[:third]) - 1) if third else 0.0


def _cores() -> Sequence[int]:
    return usable_cpus()


def _optional(times: object, *names: str) -> float:
    return sum(float(getattr(times, name, 0.0)) for name in names)  # not every system has all of them


def _count_involuntary_switches() -> int:
    """Count those of all threads of this process; 0 where the system does not."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _count_throttle_events(cores: Sequence[int]) -> int:
    """Count those of the cores (Intel), of the board (Jetson) and of the container (CPU quota)."""
    names = [f"/sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count" for core in cores]
    counts = [_read_number(name) for name in names]
    quota = re.search(r"^nr_throttled (\d+)$", _read_text("/sys/fs/cgroup/cpu.stat"), re.MULTILINE)
    board = sum((sensors.read_throttle_events() or {}).values())
    return sum(counts) + board + (int(quota[1]) if quota else 0)


def _read_number(path: str) -> int:
    text = _read_text(path).strip()
    return int(text) if text.isdigit() else 0


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _read_clock_mhz() -> float | None:
    try:
        clock = getattr(psutil.cpu_freq(), "current", None)  # cpu_freq() is None on some systems
    except (OSError, NotImplementedError):
        return None
    return float(clock) if clock else None
