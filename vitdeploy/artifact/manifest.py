"""The manifest: all facts about an artifact or bundle, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from vitdeploy.artifact.layout import VARIANT_NAME, is_of_variant
from vitdeploy.artifact.quantization import AttentionOperands, CalibrationData, Quantization, describe_precision
from vitdeploy.environment import Host
from vitdeploy.evidence import CheckpointUse, Fact, FileEntry, Interval, PixelCheck, QuantizedShare
from vitdeploy.evidence.reading import PostProcessing
from vitdeploy.recipe import OWN, Preprocess, Quantizer, Recipe, describe_schedule

SCHEMA = 2


class TensorSpec(Fact):
    """A graph input or output. A dimension that varies has a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class ModelRecord(Fact):
    """The source of the model.

    `weights` is "pretrained", "random", "file" or "own"; `digest` covers every tensor. `code` is the digest of what the
    model computes without its weights; empty for an ONNX file, and in artifacts from before it was kept. `checkpoint`
    says how the weights were read from a checkpoint; None if they come from elsewhere. `precision` is what the file of
    the model came with: "float16" and "bfloat16" were raised to float32, a "quantized" graph stayed as it is.
    """

    spec: str
    weights: Literal["pretrained", "random", "file", "own"]
    digest: str
    parameters: int
    code: str = ""
    checkpoint: CheckpointUse | None = None
    precision: Literal["float32", "float16", "bfloat16", "quantized"] = "float32"
    patch: tuple[int, int] | None = None
    """Height and width of the patches of a model whose image size varies: both sides have to be multiples."""
    dropped_outputs: tuple[str, ...] = ()
    """The outputs of the model that the artifact does not give."""
    license: str = ""
    """The licence of pretrained weights, as their model library or model card names it; empty if it is not known."""

    def describe_precision(self) -> str:
        """Return what was done with a precision that the file came with, in one line; empty for float32."""
        if self.precision == "float32":
            return ""
        if self.precision == "quantized":
            return f"{self.spec} is quantized already: fp32 keeps it as it is, and the file itself is the reference"
        return f"{self.spec} came in {self.precision}: it was raised to float32, which is the reference"


class OutputParity(Fact):
    """The largest difference of one output from the reference, over all images and batch sizes.

    Attributes:
        name: as the reference calls it.
        max_abs: the largest difference; of integers and booleans the share of elements that differ.
        reference_max: the largest absolute value of the reference's output; 1 for integers and booleans.
        cosine: the smallest cosine; of integers and booleans the share of elements that are equal.
        discrete: True for integers and booleans.
        where: the images with that difference.
        moved_rows: of an output whose rows are selected by score: how many stand in another place than the reference's.
            They were compared with the rows that they belong to.
        undecided: the largest difference that near-ties between merged tokens explain, which is not in `max_abs`.
    """

    name: str
    max_abs: float
    reference_max: float
    cosine: float
    discrete: bool = False
    where: str = ""
    moved_rows: int = 0
    undecided: float = 0.0


class Parity(Fact):
    """The difference between the outputs of a graph or engine and of the reference, on the same images.

    Attributes:
        max_abs: the largest difference of the output that differs most for its own scale.
        reference_max: the largest absolute value of that output.
        cosine: the smallest cosine of any output.
        finite: False if outputs are not finite, or do not match in number or shape.
        batches: the sizes of the batches that were compared.
        image_sizes: the size of the images in each batch, as HxW; empty if all have the same.
        outputs: the worst of each output; empty in manifests from before it was kept.
        cases: each output by batch of images.
        problem: the reason why `finite` is False.
    """

    max_abs: float
    reference_max: float
    cosine: float
    finite: bool
    batches: tuple[int, ...]
    image_sizes: tuple[str, ...] = ()
    outputs: tuple[OutputParity, ...] = ()
    cases: tuple[tuple[OutputParity, ...], ...] = ()
    problem: str = ""


class Attempt(Fact):
    """An exporter that failed, and its error."""

    exporter: str
    error: str


class ExportRecord(Fact):
    """The exporter that made the graph, the ones that failed before it, and the parity of the graph.

    `doubts` are the places where tracing replaced something that depends on the image by a constant, and the outputs
    for which parity proves nothing. `blind_outputs` are the same for all example images.
    """

    exporter: str
    opset: int
    fallbacks: tuple[Attempt, ...] = ()
    parity: Parity
    doubts: tuple[str, ...] = ()
    blind_outputs: tuple[str, ...] = ()


class Refusal(Fact):
    """A site where a pass could not fire, and the reason."""

    site: str
    reason: str


class PassRecord(Fact):
    """The number of times that a pass fired, and the sites that it refused."""

    name: str
    fired: int
    refused: tuple[Refusal, ...] = ()


FLOAT = "float"
"""The `precision` of a `Placement` without quantization: float32, or float16 in a graph that is all in float16."""


class Placement(Fact):
    """The numbers that a site computes with (`int8`, `fp8`, `int8 weights`, … or `float`), and the rule for it."""

    precision: str
    rule: str

    @property
    def quantized(self) -> bool:
        """True unless it computes in float."""
        return self.precision != FLOAT


class TargetRecord(Fact):
    """The compiler, device and host that the artifact was made with; `backend` is None in a bundle."""

    kind: str
    device: str
    precision: str
    backend: str | None = None
    host: Host | None = None


class Trial(Fact):
    """One precision that was tried, or one schedule for merging tokens in a precision.

    Attributes:
        precision: its name on the command line.
        quantizer: "own", or "nncf" where NNCF quantized it.
        attention: the operands of attention in INT8; empty if attention is in float.
        folded_norms: True if the scale and bias of LayerNorms went whole into the linears behind them.
        form: the safe form of the graph; empty for the plain one.
        float_linears: the number of linears that stayed in float.
        merged: the number of the block, and how many tokens fewer there are behind it; empty without merging.
        lost: lost points of top-1 (`judged_by` "labels"), or of agreement with the target's float graph ("agreement").
        images: the number of images that it was judged on.
        speedup: over the target's own float graph, timed in turns on this machine.
        kept: True if it became the artifact.
        why: the reason why it did not.
        located: the place at which its engine computes other numbers than its graph, in a sentence; empty if not known.
    """

    precision: str
    quantizer: Quantizer = OWN
    attention: AttentionOperands = ""
    folded_norms: bool = False
    form: str = ""
    float_linears: int = 0
    merged: Mapping[int, int] = {}
    lost: float | None = None
    judged_by: Literal["labels", "agreement"] | None = None
    images: int = 0
    speedup: Interval | None = None
    kept: bool = False
    why: str = ""
    located: str = ""

    @property
    def name(self) -> str:
        """The precision with the safe form, as a variant is named."""
        return f"{self.precision}-{self.form}" if self.form else self.precision

    @property
    def label(self) -> str:
        """The name for people, with what sets it apart from the precision's default: `int8, merged 3:60`."""
        name = describe_precision(self.name, self.quantizer, self.attention, folded_norms=self.folded_norms)
        return f"{name}, merged {describe_schedule(self.merged)}" if self.merged else name


class Tensor(Fact):
    """An input or output, for programs in any language: row-major, without padding.

    `bytes` is the size for the batch and the image size that the artifact is optimised for; None if it is not known.
    `meaning` says what the numbers are.
    """

    name: str
    dtype: str
    layout: str
    shape: tuple[int | str, ...]
    bytes: int | None
    meaning: str


class Usage(Fact):
    """Instructions to run the model without vitdeploy: tensors, preprocessing steps in order, a command."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    answers: str
    """The meaning of the outputs, which depends on the task."""
    preprocessing: tuple[str, ...]
    batch: str
    """The batch sizes that it accepts: N, or MIN:OPT:MAX."""
    image_size: str = ""
    """The image sizes that it accepts, and the multiples that both sides have to be; empty for the one in `shape`."""
    post_processing: PostProcessing | None = None
    """The steps from outputs to classes or boxes, in numbers; None for other tasks, and in older manifests."""
    build_it: str | None = None
    """A command that compiles the graph of a bundle without vitdeploy, and so without its checks."""
    try_it: str | None = None
    """A command that runs it."""


class FewerTokens(Fact):
    """Tokens that are merged or dropped, and what that changes.

    Attributes:
        merged: the number of the block, and how many tokens fewer there are behind its attention.
        dropped: the number of the block, the patches whose tokens are dropped behind its attention, by their number in
            the image, row by row; and the patch that stands in for each where all patches are needed.
        calibration: the images on which these positions were chosen.
        parity: the float32 graph with fewer tokens against the model, on the example images. What that changes is no
            error, so everything that is made of this graph is compared with it, and not with the model.
    """

    merged: Mapping[int, int] = {}
    dropped: Mapping[int, Mapping[int, int]] = {}
    calibration: CalibrationData | None = None
    parity: Parity


class Variant(Fact):
    """One of the graphs among which `compile` chooses, and the facts of the manifest that depend on it.

    The fields that a manifest has too become the manifest's when the variant is selected.

    Attributes:
        name: the precision, with the form behind it; used in file names.
        precision: its name on the command line.
        form: the safe form, which replaces what a compiler may get wrong; empty for the plain graph.
        graph: the variant whose graph this is; empty for its own.
        optimization_level: the level that it is built with; None: that of the target.
        passes: those that made this graph of the prepared one.
        note: a remark for the user.
        lost: lost accuracy in percentage points, judged where it was exported; None if it was not judged.
        judged_by: see `Trial`.
        images: the number of images that it was judged on.
    """

    name: Annotated[str, Field(pattern=f"^{VARIANT_NAME}$", max_length=100)]
    precision: str
    form: str = ""
    graph: Annotated[str, Field(pattern=f"^({VARIANT_NAME})?$", max_length=100)] = ""
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    passes: tuple[PassRecord, ...] = ()
    quantized: Quantization | None = None
    placement: Mapping[str, Placement] = {}
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    graph_parity: Parity | None = None
    note: str = ""
    lost: float | None = None
    judged_by: Literal["labels", "agreement"] | None = None
    images: int = 0

    @property
    def files(self) -> str:
        """The name in the names of its files."""
        return self.graph or self.name


class Manifest(Fact):
    """The facts about an artifact or bundle."""

    schema_version: int = SCHEMA
    stage: Literal["bundle", "artifact"]
    model: ModelRecord
    recipe: Recipe
    recipe_digest: str
    export: ExportRecord
    passes: tuple[PassRecord, ...]
    tokens: FewerTokens | None = None
    """The tokens that are merged; None where each stands for itself."""
    quantized: Quantization | None = None
    """The effect of lowering the precision; None for a float32 graph."""
    quantized_share: QuantizedShare | None = None
    """The share of weights and multiply-accumulates in the precision that was asked for; None for float32."""
    placement: Mapping[str, Placement] = {}
    """The precision of linears and attention sites by name, and of residual adds."""
    trials: tuple[Trial, ...] = ()
    """The precisions that were tried, with the loss and speed-up of each."""
    graph_parity: Parity | None = None
    """The target-ready graph, quantization included, against the reference; None if this machine cannot run it."""
    target: TargetRecord
    preprocess: Preprocess
    pixels: PixelCheck | None = None
    """The preprocessing compared with the model's own; None if the source of the model knows none."""
    assumed: tuple[str, ...] = ()
    """The parts of `preprocess` that neither the model nor the user says."""
    metadata: tuple[str, ...] = ()
    """The facts that the metadata in the model's file gave."""
    labels: tuple[str, ...] | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    usage: Usage | None = None
    """Instructions for programs that open the compiled file themselves."""
    device_parity: Parity | None = None
    """The compiled model, run on the machine that compiled it, against the reference; None where it cannot run."""
    doubts: tuple[str, ...] = ()
    """Reasons to distrust the numbers of what was compiled. Every audit repeats them, so that the gate sees them."""
    known_faults: tuple[str, ...] = ()
    """Public reports about the compiler that fit this graph. They are named before it is built."""
    variants: tuple[Variant, ...] = ()
    """The graphs among which `compile` chooses on the device; empty if there is one graph only."""
    variant: str = ""
    """The name of the variant that is selected: `graph.onnx` is its graph. Empty without variants."""
    runs: str | None = None
    """The file that the backend opens; None in a bundle."""
    versions: Mapping[str, str]
    files: tuple[FileEntry, ...] = ()

    @property
    def deployed_bytes(self) -> int | None:
        """The size of the files that the backend opens, with weights beside the graph; None for a bundle."""
        if self.runs is None:
            return None
        stem = PurePosixPath(self.runs).with_suffix("").as_posix()
        of_engine = (entry for entry in self.files if entry.path.startswith(f"{stem}."))
        return sum(entry.bytes for entry in of_engine if not is_of_variant(entry.path))

    @model_serializer(mode="wrap")
    def _leave_out_variants(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write a manifest without variants as it was before there were any."""
        facts: dict[str, Any] = serialize(self)
        if not self.variants:
            facts.pop("variants", None)
            facts.pop("variant", None)
        return facts
