"""What the compiled thing is: attention, linears, kernels, and the model's outline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from vitdeploy.evidence.fact import Evidence, Fact

EvidenceLevel = Literal["compiled", "rehearsed", "graph"]
BlockKind = Literal["global", "windowed", "fewer queries", "fewer keys", "unraised"]


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


class Sensitivity(Evidence):
    """Every linear that can be quantized, the one that costs the outputs most first."""

    file: ClassVar[str] = "sensitivity.json"

    precision: str
    layers: tuple[LayerSensitivity, ...]
    images: int
    calibration: str
    choice: str
    """How they were quantized: migration, ranges, bias correction."""


class Audit(Evidence):
    """What the compiled thing does, read back from it."""

    file: ClassVar[str] = "audit.json"

    target: str
    precision: str
    attention: AttentionAudit
    layernorm: NormAudit
    linears: LinearAudit
    layers: Mapping[str, str] = {}
    """linear -> precision"""
    stored: Mapping[str, str] = {}
    """linear -> the type (int8, int4) that its weights have in memory, where it multiplies in another one"""
    threads: int | None = None
    """OpenVINO fuses or not depending on the threads, so an audit names them."""
    backend: str = ""
    engine: KernelAudit | None = None
    """Of a TensorRT engine."""
    doubts: tuple[str, ...] = ()
    files: tuple[FileEntry, ...] = ()
    """Filled when printed; the stored audit leaves it to the manifest."""
    structure: Outline | None = None
    """Filled when printed; the stored audit leaves it to sites.json."""
    sensitivity: Sensitivity | None = None
    """Filled when printed, if it was asked for; stored apart."""


class Availability(Fact):
    """Whether a target can run here; if not, why and what to do."""

    available: bool
    why: str = ""
    fix: str = ""
