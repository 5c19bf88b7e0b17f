"""The evidence: what was read back or measured, typed.

This file is the JSON contract of `--json` and of the files `audit.json`, `bench.json`, `eval.json`, `gate.json` and
`sensitivity.json` beside an artifact's manifest.

Keys stay; more may be added. Latencies are milliseconds; a speed-up is reference time / artifact time (above 1 is
faster); a drop is reference - deployed in the metric's unit, deployed - reference for errors (above 0 is worse).
`manifest` is the sha256 of the manifest.json that the evidence is about: evidence about another manifest is stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

EvidenceLevel = Literal["compiled", "rehearsed", "graph"]
BlockKind = Literal["global", "windowed", "fewer queries", "fewer keys", "unraised"]


class Fact(BaseModel):
    """An immutable piece of evidence. Unknown keys are dropped on reading: a newer vitdeploy may have written more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Unfused(Fact):
    """An attention site that is not one kernel, and why."""

    site: str
    reason: str


class AttentionAudit(Fact):
    """Attention sites of the model, and those that run as one kernel (`kernels`: site -> kernel)."""

    sites: int
    fused: int
    evidence: EvidenceLevel
    unfused: tuple[Unfused, ...] = ()
    kernels: Mapping[str, str] = {}

    @property
    def percent(self) -> float | None:
        """Fused sites in percent; None when the model has no attention site."""
        return 100.0 * self.fused / self.sites if self.sites else None


class NormAudit(Fact):
    """LayerNorms of the model, and those that run as one kernel."""

    sites: int
    fused: int


class LinearAudit(Fact):
    """How many linears (the patch embedding is one) run in which precision; `other`: the engine does not tell."""

    int8: int = 0
    fp8: int = 0
    fp16: int = 0
    bf16: int = 0
    fp32: int = 0
    other: int = 0


class KernelAudit(Fact):
    """What a TensorRT engine is made of, from its own layer plan."""

    kernels: int
    attention: int
    """Fused attention kernels."""
    gemms: Mapping[str, int]
    """Matrix products and convolutions by the precision they multiply in; `other`: the plan does not tell."""
    reformats: int
    """Kernels that only move numbers: copies into another layout, transposes, slices."""
    casts: int
    """Kernels that only change the type of numbers."""


class FileEntry(Fact):
    """A file of the artifact."""

    path: str
    bytes: int
    sha256: str


class LinearGroup(Fact):
    """Linears of one role and size: each sums K numbers for each of N results."""

    role: str
    count: int
    k: int
    n: int
    names: tuple[str, ...] = ()
    """Of those outside of attention blocks; within, they are in sites.json."""


class BlockGroup(Fact):
    """Consecutive attention blocks that are alike; `first` and `last` count from 0.

    `linears` are those of one block. Within a window all `queries` see all `keys`. None: not known, or not raised.
    """

    first: int
    last: int
    kind: BlockKind | None
    heads: int | None
    head_size: int | None
    value_size: int | None
    queries: int | None
    keys: int | None
    windows: int | None
    bias: tuple[str, ...]
    linears: tuple[LinearGroup, ...]


class Outline(Fact):
    """The model in its own terms, as it was recognised in its graph."""

    blocks: tuple[BlockGroup, ...]
    linears: Mapping[str, int]
    """role -> how many in the whole model"""
    outside: tuple[LinearGroup, ...]
    """Linears that belong to no block, or to the way between two: patch embedding, merging, heads."""
    layernorms: int


class LayerSensitivity(Fact):
    """What a linear costs when it alone is quantized.

    Signal to noise ratios in dB, over the same images: of the linear's own output, and of the model's outputs; 10 dB
    less is ten times the noise. `agreement`: share of images for which the model still says the same, from 0 to 1; None
    where its task cannot tell. `macs`: its multiply-accumulates for one image.
    """

    name: str
    role: str
    block: int | None
    sqnr_db: float
    output_sqnr_db: float
    agreement: float | None
    macs: int


class Sensitivity(Fact):
    """Every linear that can be quantized, the one that costs the outputs most first."""

    precision: str
    layers: tuple[LayerSensitivity, ...]
    images: int
    calibration: str
    choice: str
    """How they were quantized: migration, ranges, bias correction."""
    manifest: str = ""


class Audit(Fact):
    """What the compiled thing does, read back from it."""

    target: str
    precision: str
    attention: AttentionAudit
    layernorm: NormAudit
    linears: LinearAudit
    layers: Mapping[str, str] = {}
    """linear -> precision"""
    weights: Mapping[str, int] = {}
    """Stored type (int8, int4) -> how many linears have their weights in it while they multiply in another one."""
    stored: Mapping[str, str] = {}
    """linear -> that type, for those that have one"""
    threads: int | None = None
    """OpenVINO fuses or not depending on the threads, so an audit names them."""
    backend: str = ""
    engine: KernelAudit | None = None
    """Of a TensorRT engine."""
    doubts: tuple[str, ...] = ()
    manifest: str = ""
    files: tuple[FileEntry, ...] = ()
    """Filled when printed; the stored audit leaves it to the manifest."""
    structure: Outline | None = None
    """Filled when printed; the stored audit leaves it to sites.json."""
    sensitivity: Sensitivity | None = None
    """Filled when printed, if it was asked for; stored apart."""


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
    """Of the artifact that ran; empty for a reference."""


class Pair(Fact):
    """How many times as fast as the run `over` the run `name` is."""

    name: str
    over: str
    speedup: Interval


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

    @property
    def accounted_pct(self) -> float:
        """How much of the wall time the operators add up to."""
        return 100 * sum(self.roles.values()) / self.total_ms if self.total_ms else 0.0


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
        marked = next((run for run in self.runs if run.manifest and run.manifest == self.manifest), None)
        return marked or (self.runs[1] if len(self.runs) > 1 else self.runs[0] if self.runs else None)


class Metric(Fact):
    """A metric on both sides, paired: the drop with its two-sided 95 % interval and one-sided 95 % bounds.

    Of an error, where lower is better, the drop is deployed - reference: above 0 is always worse.
    """

    reference: float
    deployed: float
    drop: float
    unit: str
    better: Literal["higher", "lower"] = "higher"
    ci95: tuple[float, float]
    lower95: float
    upper95: float


class Eval(Fact):
    """Accuracy of both sides on the same samples; `doubts` say why it proves nothing (labels in another order …).

    `agreement` is the mean over samples of how far the two answers agree, from 0 to 1, and `flips` counts the samples
    whose answers are not the same; what that means is the task's.
    """

    task: str
    n: int
    metrics: Mapping[str, Metric]
    agreement: float
    flips: int
    p_value: float
    """Of the first metric's difference, by `test`: exact McNemar, or swapping the two sides' answers at random."""
    test: str = "McNemar"
    reference: str = ""
    data: str = ""
    data_digest: str = ""
    skipped: int = 0
    discordance: float = 0.0
    """The share of samples with different outcomes; of other metrics the mean square of what one sample changes."""
    nonfinite: int = 0
    """Samples for which the deployed side gave NaN or infinity."""
    doubts: tuple[str, ...] = ()
    manifest: str = ""


class Comparison(Fact):
    """One tensor of FP32 and of the artifact, over all images. None: it cannot be compared, `note` says why.

    `adds_db`: the ratio of signal to the noise that was not yet in what it is computed from.
    """

    name: str
    tensor: str
    kind: str = "end"
    sqnr_db: float | None = None
    adds_db: float | None = None
    cosine: float | None = None
    max_abs: float | None = None
    reference_max: float | None = None
    nonfinite: int = 0
    note: str = ""


class Divergence(Fact):
    """Where FP32 and the artifact part: the first block, and the first layer in it; None if they do not."""

    target: str
    precision: str
    block: str | None
    layer: str | None
    why: str
    rule: str
    blocks: tuple[Comparison, ...]
    """At the end of each: stem, blocks, head."""
    layers: tuple[Comparison, ...]
    """Of `block`; of the one that adds most noise, if they do not part."""
    images: int
    data: str
    evidence: EvidenceLevel
    how: str
    """What ran as the artifact."""


Status = Literal["pass", "fail", "invalid"]


class Check(Fact):
    """One limit, judged."""

    name: str
    observed: float | str | None
    limit: float | str
    status: Status
    why: str


class Gate(Fact):
    """The verdict: "fail" if any check fails, else "invalid" if any could not be decided, else "pass"."""

    verdict: Status
    checks: tuple[Check, ...]
    manifest: str = ""
    timing: Bench | None = None
    """A baseline folder (first run) and the artifact, timed in turns for this verdict."""


class Availability(Fact):
    """Whether a target can run here; if not, why and what to do."""

    available: bool
    why: str = ""
    fix: str = ""
