"""Latencies, start-up, profiles, and the peak of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from vitdeploy.evidence.energy import Power
from vitdeploy.evidence.fact import Fact, Measured
from vitdeploy.evidence.stream_setting import StreamSetting
from vitdeploy.evidence.sustained import BlockState, Sustained


class Interval(Fact):
    """A ratio with its 95 % interval: a bootstrap over blocks, or the sign test over rounds."""

    ratio: float
    ci95: tuple[float, float]


class WarmUp(Fact):
    """The runs that do not count; `steady` is False if the latency still changed at their end."""

    runs: int
    seconds: float
    steady: bool


class Startup(Fact):
    """The start-up of a separate process that opens the model and answers once.

    Attributes:
        load_ms: time to open the model.
        first_ms: time of the first answer.
        peak_bytes: peak resident memory.
        engine_bytes: resident memory before the model was opened: the interpreter and the engine's libraries.
    """

    load_ms: float
    first_ms: float
    peak_bytes: int | None = None
    engine_bytes: int | None = None


Role = Literal["reference", "artifact", "opponent"]
"""The roles of a run: what speed-ups are over, what the bench is about, and what else was timed."""


class Run(Fact):
    """Latency of one side. `blocks` has every raw sample in ms, block by block, in the order taken."""

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
    """False if an output held NaN or infinity."""
    blocks: tuple[tuple[float, ...], ...] = ()
    p50_ci95: tuple[float, float] | None = None
    p90_ci95: tuple[float, float] | None = None
    p99_ci95: tuple[float, float] | None = None
    rounds: tuple[int, ...] = ()
    """Number of blocks of each opening of the model, in order."""
    warm_up: WarmUp | None = None
    startup: Startup | None = None
    size_bytes: int | None = None
    """Size of the deployed files."""
    floor_ms: float | None = None
    """Time that the model's arithmetic takes at the measured peak of this host; see `Roofline`."""
    efficiency_pct: float | None = None
    """floor / p50, in percent."""
    manifest: str = ""
    """sha256 of the artifact's manifest; empty for PyTorch and the plain engines."""
    role: Role | None = None
    """None where a stopwatch is used for something else than a bench."""
    doubts: tuple[str, ...] = ()
    """Those of the bench's doubts that are about this run and its speed-up alone."""


class Pair(Fact):
    """The speed-up of run `name` over run `over`."""

    name: str
    over: str
    speedup: Interval
    batch: int = 1


class Peak(Fact):
    """The speed of the fastest matrix product, in 10^9 operations a second (a multiply-add is two)."""

    gops: float
    engine: str


class Roofline(Fact):
    """The work of the model for one image, and the peak of this host on these threads.

    Attributes:
        peaks: precision -> fastest matrix product.
        operations: precision -> operations of all linears and of attention.
        weight_bytes: bytes of the weights as stored.
        activation_bytes: bytes in and out of all products, in float32.
        unknown: linears whose number of rows is not known, so that their work is not counted.
    """

    threads: int
    peaks: Mapping[str, Peak]
    copy_gbs: float | None = None
    """Bandwidth of copies larger than any cache, in 10^9 bytes a second; reads and writes both count."""
    cache_bytes: int | None = None
    """The largest cache of one core."""
    operations: Mapping[str, float] = {}
    weight_bytes: float = 0.0
    activation_bytes: float = 0.0
    unknown: tuple[str, ...] = ()


class OperatorShare(Fact):
    """An operator of a profile: its kind of kernel, its part of the model, its time in one run."""

    name: str
    kind: str
    role: str
    ms: float


class Profile(Fact):
    """The time of one run by operator and by part of the model (`roles`), from the engine's own counters.

    `total_ms` is the wall time of the same runs, with counters on. `between_ms` is the part of it that belongs to no
    operator: the engine passes inputs and outputs, and starts the next operator.
    """

    name: str
    runs: int
    total_ms: float
    roles: Mapping[str, float]
    operators: tuple[OperatorShare, ...]
    between_ms: float = 0.0


Scenario = Literal["single-stream", "multi-stream", "offline"]


class DeviceTime(Fact):
    """Time on the device by its own clock, and the caller's time, end to end.

    `source` is "session" (CUDA events around the engine, without copies) or "trtexec".
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
    """"yes", or the reason why there is none."""


class Stage(Fact):
    """A stage of what a caller waits for: its median time, and its share of the sum of all stages in percent."""

    name: str
    median_ms: float
    share_pct: float


class EndToEnd(Fact):
    """The time from an encoded image to labels or boxes, as a caller waits for it; one image at a time.

    Attributes:
        images: the images in words.
        samples: the number of images that were timed.
        stages: decode, preprocess, engine, postprocess.
        blocks: every sample in ms, block by block, in the order taken.
    """

    images: str
    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p50_ci95: tuple[float, float]
    p90_ci95: tuple[float, float]
    p99_ci95: tuple[float, float]
    stages: tuple[Stage, ...]
    blocks: tuple[tuple[float, ...], ...]


class Bench(Measured):
    """Interleaved latencies, each run with its role. `valid` is false if there are `doubts` about them."""

    file: ClassVar[str] = "bench.json"

    valid: bool
    doubts: tuple[str, ...]
    runs: tuple[Run, ...]
    device: tuple[DeviceTime, ...] = ()
    """Device times of artifacts that run on a device with its own clock."""
    power: Power | None = None
    machine: str = ""
    scenario: Scenario = "single-stream"
    setting: StreamSetting | None = None
    """The stored setting for throughput that the artifact was timed with; None: its own, or the user's."""
    pairs: tuple[Pair, ...] = ()
    """Speed-ups of the other artifacts over the first one."""
    stopped: Literal["narrow", "time", ""] = ""
    """The reason why timing ended: the intervals were narrow enough, or the time was up."""
    seconds: float = 0.0
    """Time spent timing, without warm-up."""
    cpus: tuple[int, ...] = ()
    """Indices of the logical CPUs that this process may use."""
    pinned: bool = False
    """True if these are fewer than the machine has (`taskset`, a container's cpuset)."""
    roofline: Roofline | None = None
    profiles: tuple[Profile, ...] = ()
    missing: Mapping[str, str] = {}
    """Opponents that are not available here, with the reason. Without a reference there is no speed-up."""
    end_to_end: EndToEnd | None = None
    """Of the first artifact, with `--end-to-end`."""
    sustained: Sustained | None = None
    """Of the first artifact, with `--sustained`."""
    conditions: Mapping[int, tuple[BlockState, ...]] = {}
    """batch -> the state of the machine in each block, from which doubts follow."""

    @model_validator(mode="before")
    @classmethod
    def _name_roles(cls, raw: Any) -> Any:
        """Give the runs of an older vitdeploy, which had no roles, those that their places meant."""
        runs = raw.get("runs") if isinstance(raw, dict) else None
        if not runs or not all(isinstance(run, dict) and "role" not in run for run in runs):
            return raw
        manifest = raw.get("manifest")
        marked = [i for i, run in enumerate(runs) if run.get("manifest") and run["manifest"] == manifest]
        timed = [i for i in marked if runs[i].get("speedup")]
        subject = (timed or marked or [min(1, len(runs) - 1)])[0]
        first = runs[0].get("name") if subject else None

        def role(place: int, run: Mapping[str, Any]) -> Role:
            if run.get("name") == first:
                return "reference"
            return "artifact" if place == subject or (place > subject and run.get("manifest")) else "opponent"

        roles = [role(place, run) for place, run in enumerate(runs)]
        return {**raw, "runs": [{**run, "role": role} for run, role in zip(runs, roles, strict=True)]}

    @property
    def reference(self) -> Run | None:
        """The run that speed-ups are relative to; None if nothing was timed beside the artifact."""
        return next((run for run in self.runs if run.role == "reference"), None)

    @property
    def own(self) -> Run | None:
        """The run of the artifact that this is about, at the first batch size; None if nothing was timed."""
        return next((run for run in self.runs if run.role == "artifact"), None)
