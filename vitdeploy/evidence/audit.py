"""The audit of a compiled model: attention, linears, kernels, and the model's outline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from vitdeploy.evidence.fact import Fact, Measured
from vitdeploy.evidence.pixels import PixelCheck

EvidenceLevel = Literal["compiled", "rehearsed", "graph"]
BlockKind = Literal["global", "windowed", "fewer queries", "fewer keys", "unraised"]


class Unfused(Fact):
    """An attention site that does not run as one kernel, and the reason."""

    site: str
    reason: str


class AttentionAudit(Fact):
    """The number of attention sites, and of those that run as one kernel (`kernels`: site -> kernel)."""

    sites: int
    fused: int
    evidence: EvidenceLevel
    unfused: tuple[Unfused, ...] = ()
    kernels: Mapping[str, str] = {}
    unclassified: tuple[Unfused, ...] = ()
    """Softmaxes that may belong to an attention or not, and why that is not known. They are not among `sites`."""

    @property
    def percent(self) -> float | None:
        """Fused sites in percent; None if the model has no attention site."""
        return 100.0 * self.fused / self.sites if self.sites else None


class NormAudit(Fact):
    """The number of LayerNorms, of those whose mean, variance and division are one kernel, and the others' reasons."""

    sites: int
    fused: int
    unfused: tuple[Unfused, ...] = ()


class GeluAudit(Fact):
    """The number of GELUs, of those that run inside one kernel, often that of the linear before, and the others."""

    sites: int
    fused: int
    unfused: tuple[Unfused, ...] = ()


class LinearAudit(Fact):
    """The number of linears by precision, patch embedding included; `other`: the engine does not report it."""

    int8: int = 0
    fp8: int = 0
    fp16: int = 0
    bf16: int = 0
    fp32: int = 0
    other: int = 0


class QuantizedShare(Fact):
    """The share of a model that runs in the precision that was asked for.

    It counts all products with constant weights: linears, convolutions and the like. Attention multiplies no weights,
    and is counted apart.

    Attributes:
        precision: the type that was asked for, of products or of stored weights: "int8", "fp16", "int4", ….
        evidence: "compiled" if the type of each product was read from what was compiled; "graph" if it is what the
            graph says.
        weights_pct: percent of the elements of all weights.
        macs_pct: percent of the multiply-accumulates with weights.
        eligible_pct: percent of those multiply-accumulates that neither the user (`keep`, `--max-drop`) nor a named
            rule excludes; None if all are excluded.
        weights: the elements of all weights.
        macs: the multiply-accumulates with weights, for one image.
        attention_macs: the multiply-accumulates of attention without weights; None if they are not known.
        outside: what runs in other types, with its number and rule -> percent of the multiply-accumulates with weights.
        unknown: products whose multiply-accumulates are not known. They are not counted.
    """

    precision: str
    evidence: EvidenceLevel
    weights_pct: float
    macs_pct: float
    eligible_pct: float | None = None
    weights: int
    macs: int
    attention_macs: int | None = None
    outside: Mapping[str, float] = {}
    unknown: tuple[str, ...] = ()


class KernelAudit(Fact):
    """The kernels of a TensorRT engine, from its own layer plan."""

    kernels: int
    attention: int
    """Number of fused attention kernels."""
    gemms: Mapping[str, int]
    """Matrix products and convolutions by the precision they multiply in; `other`: the plan does not say."""
    reformats: int
    """Number of kernels that only move data: copies into another layout, transposes, slices."""
    casts: int
    """Number of kernels that only convert data to another type."""


class FileEntry(Fact):
    """A file of the artifact."""

    path: str
    bytes: int
    sha256: str


class LinearGroup(Fact):
    """Linears of one role and size: each has K inputs and N outputs."""

    role: str
    count: int
    k: int
    n: int
    names: tuple[str, ...] = ()
    """Names of linears outside of attention blocks; sites.json has the others."""


class BlockGroup(Fact):
    """Consecutive attention blocks of one form; `first` and `last` count from 0.

    `linears` are those of one block. Within a window, all `queries` attend to all `keys`. None: not known, or the
    attention was not raised.
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
    """The structure of a model, as it was recognised in its graph."""

    blocks: tuple[BlockGroup, ...]
    linears: Mapping[str, int]
    """role -> number of linears in the whole model"""
    outside: tuple[LinearGroup, ...]
    """Linears outside of attention blocks, or between two of them: patch embedding, merging, heads."""
    layernorms: int


class LayerSensitivity(Fact):
    """The damage done when one linear alone is quantized.

    Attributes:
        sqnr_db: signal to noise ratio of the linear's own output; 10 dB less is ten times the noise.
        output_sqnr_db: signal to noise ratio of the model's outputs, over the same images.
        agreement: share of images with the same answer as FP32, from 0 to 1; None if the task has no such answer.
        macs: multiply-accumulate operations of the linear for one image.
        region: where it is in the model: backbone, neck, encoder, selection, decoder, heads; None if that is unknown.
    """

    name: str
    role: str
    block: int | None
    sqnr_db: float
    output_sqnr_db: float
    agreement: float | None
    macs: int
    region: str | None = None


class RegionSensitivity(Fact):
    """The damage of all linears of a region, as the sum of what each does alone.

    Attributes:
        region: backbone, neck, encoder, selection, decoder or heads.
        linears: how many there are.
        output_sqnr_db: signal to noise ratio of the model's outputs, with the noise of these linears added up.
        macs: multiply-accumulate operations of these linears for one image.
    """

    region: str
    linears: int
    output_sqnr_db: float
    macs: int


class Sensitivity(Measured):
    """Every linear that can be quantized, the most damaging first."""

    file: ClassVar[str] = "sensitivity.json"

    precision: str
    layers: tuple[LayerSensitivity, ...]
    regions: tuple[RegionSensitivity, ...] = ()
    """The most damaging first; empty if regions are unknown."""
    images: int
    calibration: str
    choice: str
    """The quantization of the linears: migration, ranges, bias correction."""


class Audit(Measured):
    """The kernels and precisions of a compiled model, read back from it."""

    file: ClassVar[str] = "audit.json"

    target: str
    precision: str
    attention: AttentionAudit
    layernorm: NormAudit
    gelu: GeluAudit | None = None
    """None: written by a version that did not read them."""
    linears: LinearAudit
    layers: Mapping[str, str] = {}
    """linear -> precision"""
    stored: Mapping[str, str] = {}
    """linear -> the type of its weights in memory (int8, int4), if it multiplies in another one"""
    products: Mapping[str, str] = {}
    """other product with weights (a convolution) -> precision"""
    quantized: QuantizedShare | None = None
    """The share of weights and multiply-accumulates in the precision that was asked for; None for float32."""
    threads: int | None = None
    """Number of threads of the audit: what OpenVINO fuses depends on it."""
    backend: str = ""
    engine: KernelAudit | None = None
    """The kernels, if it is a TensorRT engine."""
    providers: Mapping[str, int] = {}
    """On a GPU, the execution provider of ONNX Runtime -> number of nodes that it ran. A plug-in runs many as one."""
    elsewhere: Mapping[str, str] = {}
    """On a GPU, the attention sites, LayerNorms and products that ran on the CPU, with the operator."""
    doubts: tuple[str, ...] = ()
    files: tuple[FileEntry, ...] = ()
    """Only in printed audits; in the artifact folder, the manifest has it."""
    tokens: tuple[int | None, ...] = ()
    """The tokens of one image that each attention gets, block by block. Merging makes them fewer. None: not known
    before run time. Only in printed audits; in the artifact folder, sites.json has them."""
    structure: Outline | None = None
    """Only in printed audits; in the artifact folder, sites.json has it."""
    sensitivity: Sensitivity | None = None
    """Only in printed audits, with --sensitivity; in the artifact folder, sensitivity.json has it."""
    pixels: PixelCheck | None = None
    """Only in printed audits; in the artifact folder, the manifest has it."""
    model_precision: str = ""
    """The precision that the model's file came with. Only in printed audits; in the folder, the manifest has it."""


class Availability(Fact):
    """A target's availability on this machine; if it cannot run, the reason and what to do."""

    available: bool
    why: str = ""
    fix: str = ""
