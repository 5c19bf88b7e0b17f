"""The manifest: everything that is known about an artifact or bundle, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Literal

from vitdeploy.artifact.quantization import Quantization
from vitdeploy.environment import Host
from vitdeploy.evidence import Fact, FileEntry, Interval
from vitdeploy.recipe import Preprocess, Recipe

SCHEMA = 2


class TensorSpec(Fact):
    """A graph input or output; a dimension that varies is given by name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class ModelRecord(Fact):
    """Where the model came from. `weights` is "pretrained", "random" or "file"; `digest` covers every tensor of it."""

    spec: str
    weights: Literal["pretrained", "random", "file", "own"]
    digest: str
    parameters: int


class Parity(Fact):
    """How far the graph is from the reference on the same input."""

    max_abs: float
    reference_max: float
    cosine: float
    finite: bool
    batches: tuple[int, ...]


class Attempt(Fact):
    """An exporter that failed, and what it said."""

    exporter: str
    error: str


class ExportRecord(Fact):
    """Which exporter made the graph, what failed before it, and how the numbers compare."""

    exporter: str
    opset: int
    fallbacks: tuple[Attempt, ...] = ()
    parity: Parity


class Refusal(Fact):
    """A place where a pass could not fire, and why."""

    site: str
    reason: str


class PassRecord(Fact):
    """How often a pass fired, and where it refused."""

    name: str
    fired: int
    refused: tuple[Refusal, ...] = ()


FLOAT = "float"
"""What `Placement` calls numbers that were left alone: float32, or float16 where that is all around."""


class Placement(Fact):
    """Which numbers a site computes with (`int8`, `fp8`, `int8 weights` .. or `float`), and the rule that says so."""

    precision: str
    rule: str

    @property
    def quantized(self) -> bool:
        """Whether it is not in float."""
        return self.precision != FLOAT


class TargetRecord(Fact):
    """What the graph was compiled by and where; `backend` is None in a bundle."""

    kind: str
    device: str
    precision: str
    backend: str | None = None
    host: Host | None = None


class Trial(Fact):
    """A way to lower the precision that was tried.

    Attributes:
        precision: as it was asked for.
        float_linears: how many linears stayed in float.
        lost: points of top-1 lost (`judged_by` "labels"), or of agreement with the target's float graph ("agreement").
        images: that it was judged on.
        speedup: over the target's own float graph, interleaved on this machine.
        kept: whether it became the artifact.
        why: why it was left, where it was.
    """

    precision: str
    float_linears: int = 0
    lost: float | None = None
    judged_by: Literal["labels", "agreement"] | None = None
    images: int = 0
    speedup: Interval | None = None
    kept: bool = False
    why: str = ""


class Tensor(Fact):
    """An input or output as code in any language meets it: row-major, without padding.

    `bytes` is for the shape at the optimised batch. `meaning` says what the numbers are.
    """

    name: str
    dtype: str
    layout: str
    shape: tuple[int | str, ...]
    bytes: int | None
    meaning: str


class Usage(Fact):
    """How to feed and read what is in the folder without vitdeploy: tensors, preprocessing in order, a command."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    answers: str
    """What the outputs are together, by the task that the model is for."""
    preprocessing: tuple[str, ...]
    batch: str
    """The sizes it serves: N, or MIN:OPT:MAX."""
    try_it: str | None = None
    """A command that runs it."""


class Manifest(Fact):
    """Everything that is known about the folder."""

    schema_version: int = SCHEMA
    stage: Literal["bundle", "artifact"]
    model: ModelRecord
    recipe: Recipe
    recipe_digest: str
    export: ExportRecord
    passes: tuple[PassRecord, ...]
    quantized: Quantization | None = None
    """What lowering the precision did; None of a float32 graph."""
    placement: Mapping[str, Placement] = {}
    """What was quantized and what was not: linears and attention sites by name, and residual adds."""
    trials: tuple[Trial, ...] = ()
    """What was tried to get here, and what each way cost and brought."""
    graph_parity: Parity | None = None
    """The target-ready graph against the reference, where this machine can run it; quantization is part of it."""
    target: TargetRecord
    preprocess: Preprocess
    labels: tuple[str, ...] | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    usage: Usage | None = None
    """For programs that open the compiled file themselves."""
    device_parity: Parity | None = None
    """What the compiled thing gave on the device that built it, against the reference's stored outputs."""
    runs: str | None = None
    """The file that the backend opens; None in a bundle."""
    versions: Mapping[str, str]
    files: tuple[FileEntry, ...] = ()

    @property
    def deployed_bytes(self) -> int | None:
        """The size of the files that the backend opens, weights beside the graph included; None of a bundle."""
        if self.runs is None:
            return None
        stem = PurePosixPath(self.runs).with_suffix("").as_posix()
        return sum(entry.bytes for entry in self.files if entry.path.startswith(f"{stem}."))
