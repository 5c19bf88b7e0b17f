"""How long it takes, what that costs in energy, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from vitdeploy.evidence.fact import Fact


class Interval(Fact):
    """A ratio with its 95 % interval: a bootstrap over blocks, or ranks over openings of the model."""

    ratio: float
    ci95: tuple[float, float]


class WarmUp(Fact):
    """Runs before the first one that counts. `steady`: whether they had settled when the time for them was up."""

    runs: int
    seconds: float
    steady: bool


class Startup(Fact):
    """A process of its own that opens the model and answers once. Bytes are resident memory at its peak.

    `engine_bytes`: of the same process before it opened the model: the interpreter and the engine's libraries.
    """

    load_ms: float
    first_ms: float
    peak_bytes: int | None = None
    engine_bytes: int | None = None


class Run(Fact):
    """Latency of one side. `blocks` keeps every raw sample, in ms, block by block in the order taken."""

    name: str
    batch: int
    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput_ips: float
    speedup: Interval | None
    threads: int | None = None
    effective: Mapping[str, str] = {}
    finite: bool = True
    """Whether every output was free of NaN and infinity."""
    blocks: tuple[tuple[float, ...], ...] = ()
    p50_ci95: tuple[float, float] | None = None
    p90_ci95: tuple[float, float] | None = None
    p99_ci95: tuple[float, float] | None = None
    rounds: tuple[int, ...] = ()
    """How many of the blocks belong to each opening of the model, in order."""
    warm_up: WarmUp | None = None
    startup: Startup | None = None
    size_bytes: int | None = None
    """Of the files that are deployed."""
    floor_ms: float | None = None
    """What the model's arithmetic takes at the measured peak of this host; see `Roofline`."""
    efficiency_pct: float | None = None
    """floor / p50, in percent."""
    manifest: str = ""
    """Of the artifact that ran; empty for PyTorch and the plain engines."""


class Pair(Fact):
    """How many times as fast as the run `over` the run `name` is."""

    name: str
    over: str
    speedup: Interval
    batch: int = 1


class Peak(Fact):
    """The fastest matrix product seen on these threads: 10^9 operations a second (a multiply-add is two)."""

    gops: float
    engine: str


class Roofline(Fact):
    """What the model asks of a machine for one image, and what this host can do on these threads.

    `operations`: precision -> of all products with weights and of attention. `weight_bytes`: as stored by precision.
    `activation_bytes`: in and out of every product, float32. `unknown`: linears whose number of rows is not known.
    """

    threads: int
    peaks: Mapping[str, Peak]
    copy_gbs: float | None = None
    """10^9 bytes a second, read and written, of a copy that no cache holds."""
    cache_bytes: int | None = None
    """The largest cache of one core."""
    operations: Mapping[str, float] = {}
    weight_bytes: float = 0.0
    activation_bytes: float = 0.0
    unknown: tuple[str, ...] = ()


class OperatorShare(Fact):
    """An operator of the profile: what kind of kernel it is, which part of the model it computes, its time a run."""

    name: str
    kind: str
    role: str
    ms: float


class Profile(Fact):
    """Where the time of one run goes, by the engine's own counters; `roles` sums the operators by part of the model.

    `total_ms` is the wall time of the same runs, counters on. `between_ms` of it is no operator's: the engine hands
    over inputs and outputs and starts the next operator.
    """

    name: str
    runs: int
    total_ms: float
    roles: Mapping[str, float]
    operators: tuple[OperatorShare, ...]
    between_ms: float = 0.0


Scenario = Literal["single-stream", "multi-stream", "offline"]


class RailEnergy(Fact):
    """A power rail: mean power under load and idle, and energy of one inference (idle power is part of it)."""

    name: str
    watts: float
    idle_watts: float | None
    millijoules: float


class Power(Fact):
    """Energy of the first artifact, measured while it runs alone; without rails, `why` says why.

    `source`: "hwmon" (power monitors), "tegrastats" or "rapl" (a CPU's own counters). `total`: the rail that feeds all
    others; None where there is none, and rails may then neither be added up nor taken for the whole. `throttled`: what
    slowed the board down meanwhile; empty: nothing that it counts.
    """

    source: str = ""
    rails: tuple[RailEnergy, ...] = ()
    total: str | None = None
    seconds: float = 0.0
    inferences: int = 0
    throttled: str = ""
    why: str = ""


class DeviceTime(Fact):
    """Where a caller's time goes: work on the device by its own clock, and all that the caller waits for.

    `source`: "session" (CUDA events around the engine, copies left out) or "trtexec".
    """

    name: str
    source: str
    samples: int
    device_p50_ms: float
    device_p90_ms: float
    device_p99_ms: float
    end_to_end_p50_ms: float
    end_to_end_p90_ms: float
    end_to_end_p99_ms: float
    cuda_graph: str = ""
    """"yes", or why not."""


class Bench(Fact):
    """Interleaved latencies; the first run is the reference. `valid` is false when there are `doubts` about timing."""

    valid: bool
    doubts: tuple[str, ...]
    runs: tuple[Run, ...]
    device: tuple[DeviceTime, ...] = ()
    """Of artifacts that run on a device with a clock of its own."""
    power: Power | None = None
    machine: str = ""
    manifest: str = ""
    scenario: Scenario = "single-stream"
    pairs: tuple[Pair, ...] = ()
    """Of artifacts against the first artifact."""
    stopped: Literal["narrow", "time", ""] = ""
    """Why timing ended: the intervals were narrow enough, or the time was up."""
    seconds: float = 0.0
    """Spent timing, warm-up aside."""
    cpus: tuple[int, ...] = ()
    """Logical CPUs that this process may use."""
    pinned: bool = False
    """Whether these are fewer than the machine has: `taskset`, a container's cpuset."""
    roofline: Roofline | None = None
    profiles: tuple[Profile, ...] = ()

    @property
    def reference(self) -> Run | None:
        """What the speed-ups are over; None when nothing was timed beside the artifact."""
        return self.runs[0] if len(self.runs) > 1 and self.runs[0] is not self.own else None

    @property
    def own(self) -> Run | None:
        """The run of the artifact that this is about, at the first batch size; None when nothing was timed."""
        marked = [run for run in self.runs if run.manifest and run.manifest == self.manifest]
        if marked:  # what it is timed against may be a copy of it
            return next((run for run in marked if run.speedup is not None), marked[0])
        return self.runs[1] if len(self.runs) > 1 else self.runs[0] if self.runs else None
