"""The manifest's record of what quantization did."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from vitdeploy.evidence import Fact
from vitdeploy.recipe import OWN, Quantizer

_DIGEST_BYTES = 8


def encode_digests(digests: Iterable[int]) -> str:
    """Return digests of images as `CalibrationData.samples`."""
    return base64.b64encode(b"".join(digest.to_bytes(_DIGEST_BYTES, "little") for digest in digests)).decode()


class CalibrationData(Fact):
    """The images that ranges come from, or that were only used to find overflow.

    `data` is DATA of the command line, and `digest` the digest of its contents. `synthetic` images are generated: they
    show only overflow that any image causes. `doubts` are reasons why other images may behave differently.
    """

    data: str
    digest: str
    images: int
    synthetic: bool = False
    doubts: tuple[str, ...] = ()
    samples: str = ""
    """The digest of each image (`data.dataset.digest_image`), 8 bytes little-endian each, in base64."""

    @property
    def sample_digests(self) -> tuple[int, ...]:
        """The digests of the images; empty if they were not kept.

        Raises:
            ValueError: `samples` is not base64 of one digest for each image.
        """
        raw = base64.b64decode(self.samples, validate=True)
        if raw and len(raw) != _DIGEST_BYTES * self.images:
            raise ValueError(f"{len(raw):,} bytes are not the digests of {self.images:,} images")
        starts = range(0, len(raw), _DIGEST_BYTES)
        return tuple(int.from_bytes(raw[start : start + _DIGEST_BYTES], "little") for start in starts)

    def __str__(self) -> str:
        if self.synthetic:
            return f"{self.images} synthetic images only: give --calibration to check on real data"
        return f"{self.images} calibration images ({self.data})"


AttentionOperands = Literal["", "values", "all"]
"""The operands of attention in INT8: none, the probabilities and v, or q, k, v and the probabilities."""


def describe_precision(
    name: str, quantizer: Quantizer, attention: AttentionOperands = "", *, folded_norms: bool = False
) -> str:
    """Return the name of a precision for people: `int8`, `int8 by NNCF` or `int8 with INT8 attention, norms folded`."""
    name = name if quantizer == OWN else f"{name} by NNCF"
    if attention:
        name += " with INT8 attention" + (" (values only)" if attention == "values" else "")
    return f"{name}, norms folded" if folded_norms else name


class Migration(Fact):
    """Migration of outliers from activations into weights, with strength `alpha`, at `inputs` inputs of linears.

    `norms` is the number of LayerNorms whose scale and bias went whole into the linears behind them, in place of that.
    """

    alpha: float
    inputs: int
    norms: int = 0

    def __str__(self) -> str:
        folded = f"scale and bias of {self.norms} norms folded into the weights; " if self.norms else ""
        return f"{folded}strength {self.alpha:g}, at {self.inputs} inputs"


class SearchStep(Fact):
    """One set of quantization settings that was tried, and the signal to noise ratio of the model's outputs.

    `alpha` is the strength of the migration; None is off. `norms` is True if the scale and bias of LayerNorms went
    whole into the linears behind them. `output_sqnr_db` is None if the outputs were not finite.
    """

    alpha: float | None = None
    norms: bool = False
    ranges: Literal["minmax", "mse"] = "minmax"
    bias_correction: bool = False
    output_sqnr_db: float | None

    def __str__(self) -> str:
        migration = "no migration" if self.alpha is None else f"migration {self.alpha:g}"
        migration = "norms folded" if self.norms else migration
        correction = ", bias correction" if self.bias_correction else ""
        noise = "not finite" if self.output_sqnr_db is None else f"{self.output_sqnr_db:.1f} dB"
        return f"{migration}, {self.ranges} ranges{correction}: {noise}"


class HalfPrecision(Fact):
    """The part of the graph that is in 16-bit floats.

    Attributes:
        dtype: "float16" or "bfloat16".
        scope: "all" of the graph except its inputs and outputs; or only the "weights", if the engine computes in this
            type by itself.
        float32: sites and linears that stay in float32, with the reason.
        float32_nodes: operator -> the number of other nodes that stay in float32.
        float32_rules: rule -> the number of nodes that it keeps in float32, whatever the images show.
        largest: the largest activation on the images.
        largest_tensor: the tensor with this activation.
        limit: the largest activation for which float16 is used.
        checked_on: the images that the largest activation was found on; None if there were none.
    """

    dtype: Literal["float16", "bfloat16"]
    scope: Literal["all", "weights"] = "all"
    float32: Mapping[str, str] = {}
    float32_nodes: Mapping[str, int] = {}
    float32_rules: Mapping[str, int] = {}
    largest: float | None = None
    largest_tensor: str = ""
    limit: float | None = None
    checked_on: CalibrationData | None = None

    def __str__(self) -> str:
        if self.scope == "weights":
            return f"weights in {self.dtype}; the engine computes in it"
        exceptions = " except the nodes named below" if self.float32 or self.float32_nodes else " throughout"
        return f"{self.dtype}{exceptions}"


class Int8AttentionCount(Fact):
    """The number of attention sites that multiply q, k, v and the probabilities in INT8, and the number of all."""

    sites: int
    of: int
    values_alone: bool = False
    """Only the probabilities and v are INT8."""

    @property
    def operands(self) -> AttentionOperands:
        """The operands that are INT8."""
        return "values" if self.values_alone else "all"


class Quantization(Fact):
    """The record of a lowered precision: the changes to the graph, and the numbers that led to them.

    Attributes:
        quantizer: "own", or "nncf" where NNCF made the graph.
        method: "static Q/DQ", "dynamic", "weights only", …, in words.
        quantized: the number of quantized linears.
        activations: the integer type of quantized activations.
        weights: the storage of weights, if only weights are quantized.
        weight_bits: the bits that INT8 weights use: 7 for CPUs whose sums of products would saturate.
        rounding: the rounding of weights, if only weights are quantized.
        migration: the migration of outliers; None if there was none.
        migration_note: the reason why migration was impossible.
        ranges: how the ranges of activations were found.
        bias_correction: True if the mean error of each linear was subtracted from its bias.
        output_sqnr_db: signal to quantization noise ratio of the model's outputs in dB, on calibration images.
        output_sqnr_db_without_attention: the same before attention was quantized.
        attention: attention sites in INT8, if the recipe asks for them.
        tried: the settings that were tried, in order.
        calibration: the images that ranges or roundings come from.
        half: the part of the graph that is in 16-bit floats; None if there is none.
    """

    method: str
    quantizer: Quantizer = OWN
    quantized: int = 0
    activations: str = ""
    weights: str = ""
    weight_bits: int | None = None
    rounding: str = ""
    migration: Migration | None = None
    migration_note: str = ""
    ranges: Literal["minmax", "mse"] | None = None
    bias_correction: bool | None = None
    output_sqnr_db: float | None = None
    output_sqnr_db_without_attention: float | None = None
    attention: Int8AttentionCount | None = None
    tried: tuple[SearchStep, ...] = ()
    calibration: CalibrationData | None = None
    half: HalfPrecision | None = None

    @property
    def attention_operands(self) -> AttentionOperands:
        """The operands of attention in INT8."""
        return "" if self.attention is None else self.attention.operands

    @property
    def folded_norms(self) -> bool:
        """True if the scale and bias of LayerNorms went whole into the linears behind them."""
        return self.migration is not None and self.migration.norms > 0

    @property
    def doubts(self) -> tuple[str, ...]:
        """Reasons why other images may behave differently from the calibration images."""
        data = (self.calibration, self.half.checked_on if self.half else None)
        return tuple(dict.fromkeys(doubt for images in data if images is not None for doubt in images.doubts))

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield (name, value) pairs for people. Facts that do not apply are left out."""
        yield "method", self.method if self.quantizer == OWN else f"{self.method}, by NNCF"
        if self.quantized:
            yield "linears quantized", str(self.quantized)
        yield from ((name, value) for name, value in _setting_rows(self) if value)
        if self.calibration is not None:
            yield "calibration", str(self.calibration)
            yield "calibration digest", self.calibration.digest
        if self.tried:
            yield "tried", "; ".join(map(str, self.tried))
        if self.half is not None:
            yield from _half_rows(self.half)
        yield from (("doubt", doubt) for doubt in self.doubts)


def _setting_rows(record: Quantization) -> Iterator[tuple[str, str]]:
    yield "activations", record.activations
    yield "weights", record.weights
    yield "bits per weight", "" if record.weight_bits is None else str(record.weight_bits)
    yield "rounding", record.rounding
    if record.migration is not None:
        yield "migration", str(record.migration)
    elif record.output_sqnr_db is not None or record.migration_note:
        yield "migration", record.migration_note or "off"
    yield "ranges", record.ranges or ""
    yield "bias correction", "" if record.bias_correction is None else "on" if record.bias_correction else "off"
    yield "outputs, signal to noise", _decibels(record.output_sqnr_db)
    yield "outputs, without INT8 attention", _decibels(record.output_sqnr_db_without_attention)
    if record.attention is not None:
        yield "attention", f"INT8 at {record.attention.sites} of {record.attention.of} sites"


def _half_rows(half: HalfPrecision) -> Iterator[tuple[str, str]]:
    yield "16-bit floats", str(half)
    if half.checked_on is not None:
        yield "overflow checked on", str(half.checked_on)
    elif half.dtype == "float16":
        yield "overflow checked on", "constants only, because there were no images"
    if half.largest is not None:
        yield "largest activation", f"{half.largest:.4g} ({half.largest_tensor}); the limit is {half.limit or 0:.0f}"
    yield from ((f"float32: {name}", reason) for name, reason in half.float32.items())
    if half.float32_nodes:
        yield (
            "other nodes in float32",
            ", ".join(f"{count} {operator}" for operator, count in half.float32_nodes.items()),
        )
    yield from (("float32 by rule", f"{count} nodes: {rule}") for rule, count in half.float32_rules.items())


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"
