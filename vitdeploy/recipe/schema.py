"""The schema of a recipe: its sections, their keys and their valid values."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, field_validator, model_validator

from vitdeploy.frozen import Frozen
from vitdeploy.plugins import did_you_mean, names_in
from vitdeploy.recipe.image_size import SizeRange, format_size
from vitdeploy.recipe.model import ModelSpec
from vitdeploy.recipe.preprocess import Preprocess
from vitdeploy.recipe.tokens import TokensSpec

AUTO = "auto"
"""A `--precision` that stands for the fastest precision of the target within the accuracy budget."""

InputForm = Literal["normalized", "pixels", "uint8"]
"""The input of an artifact, NCHW: float32 (x / 255 - mean) / std, float32 from 0 to 255, or uint8."""
REFERENCE = "pytorch-fp32"
"""The default opponent of an artifact when it is timed."""


class Batch(Frozen):
    """The batch sizes that an artifact accepts: one (static), or a range with the size to optimise for."""

    min: Annotated[int, Field(ge=1)] = 1
    opt: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        """Accept `4` and `"1:4:8"` as well as the three keys."""
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "opt": value, "max": value}
        if isinstance(value, str):
            sizes = value.split(":")
            if len(sizes) not in (1, 3) or not all(re.fullmatch(r"[0-9]+", s) for s in sizes):
                raise ValueError(f"{value!r} is neither N nor MIN:OPT:MAX, such as 4 or 1:4:8")
            low, opt, high = (sizes * 3)[:3]
            return {"min": int(low), "opt": int(opt), "max": int(high)}
        return value

    @model_validator(mode="after")
    def _check_order(self) -> Batch:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"{self} is not ordered: MIN <= OPT <= MAX")
        return self

    @property
    def static(self) -> bool:
        """True if the graph has one fixed batch size."""
        return self.min == self.max

    def __str__(self) -> str:
        return str(self.opt) if self.static else f"{self.min}:{self.opt}:{self.max}"


class TaskSpec(Frozen):
    """The task of the model; other keys are the task's own options. Without a kind, the model's own task is used."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The raw options, for the task's class to validate."""
        return dict(self.model_extra or {})


class DataSpec(Frozen):
    """DATA of the command line: images for activation ranges (`calibration`) and for accuracy (`evaluation`)."""

    calibration: str | None = None
    evaluation: str | None = None
    calibration_images: Annotated[int, Field(ge=1)] = 128
    """The most images to calibrate on. 32 to 300 are enough: draws of 32 differ by less than 0.1 points of accuracy."""
    judge: bool = True
    """Store images with the answers of FP32 in a bundle with variants, so that the device can judge their accuracy."""


class TargetSpec(Frozen):
    """The engine and device to compile for; other keys are the target's own options.

    With `portable` the artifact carries variants, among which `compile` chooses on the machine that it is brought to.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str
    device: str | None = None
    batch: Batch = Batch()
    input: InputForm = "normalized"
    portable: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The raw options, for the target's class to validate."""
        return dict(self.model_extra or {})


Quantizer = Literal["own", "nncf"]
OWN: Quantizer = "own"
NNCF: Quantizer = "nncf"
Int8Attention = Literal[False, True, "values"]
VALUES: Int8Attention = "values"


class PrecisionSpec(Frozen):
    """The numeric types that weights are stored in and products are computed in.

    Attributes:
        kind: the name of a precision; or "auto", the fastest that the target has within `max_drop_pp`.
        quantizer: what decides scales and rounding: vitdeploy's own, or NNCF. None: own; for "auto" both, where NNCF is
            installed.
        among: the precisions that "auto" tries beside the target's default; empty: all that may be faster.
        smooth_alpha: the strength of the migration of outliers, from 0 to 1; "norms": the scale and bias of LayerNorms
            go whole into the linears behind them.
        keep: linears that stay in float, by role (`head`), by region (`decoder`) or by name (`blocks.0.*`).
        float_decoder: where activations are rounded, leave the selection scores, the decoder and the heads of a
            detector with queries (DETR and its successors) in float.
        attention: compute the two products of each attention in INT8 too, if the target keeps them in one kernel;
            "values": only that of the probabilities and v.
        max_drop_pp: the most accuracy that may be lost, in percentage points: of top-1 if the calibration images have
            labels, else of agreement with float32.
        seconds: the time to measure for each comparison of speed, of precisions and of merging; None: a few seconds,
            and longer if that is doubtful.
        group: for int4-weights, the number of inputs of a linear that share a scale. Smaller groups are more exact and
            make larger files.
    """

    kind: str | None = None
    quantizer: Quantizer | None = None
    among: tuple[str, ...] = ()
    smooth_alpha: Literal["auto", "off", "norms"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    keep: tuple[str, ...] = ()
    float_decoder: bool = True
    attention: Int8Attention = False
    max_drop_pp: Annotated[float, Field(gt=0)] | None = None
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    group: Literal[32, 64, 128] = 64

    @field_validator("kind")
    @classmethod
    def _check_kind(cls, value: str | None) -> str | None:
        choices = [*names_in("precision"), AUTO]
        if value is not None and value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}{did_you_mean(value, choices)}")
        return value

    @model_validator(mode="after")
    def _check_among(self) -> PrecisionSpec:
        choices = names_in("precision")
        for name in self.among:
            if name not in choices:
                raise ValueError(f"{name!r} is not one of {', '.join(choices)}{did_you_mean(name, choices)}")
        if len(set(self.among)) < len(self.among):
            raise ValueError(f"a precision is there twice: {', '.join(self.among)}")
        if self.among and self.kind != AUTO:
            raise ValueError(f"`among` is for `kind: auto`, and the kind is {self.kind}")
        return self


class BenchSpec(Frozen):
    """The opponent, the number of threads and the approximate seconds of a latency measurement."""

    against: str = REFERENCE
    """The name of an opponent, as for `bench --against`, or the folder of another artifact."""
    threads: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    seconds: Annotated[float, Field(gt=0)] = 10.0


Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GateSpec(Frozen):
    """Limits of the gate. A limit that is not set is not checked; zero is refused, because nothing could meet it.

    `max_growth_pct` is the growth of files and memory against a baseline. `latency_percentile` is of both latencies, by
    default 50. `energy_rail` is the power rail that `max_energy_mj` is about. `at_threshold` adds
    checks of what is found with at least this score. `max_regression_pp` is against a baseline with other weights, over
    all samples, and `max_class_regression_pp` in the worst class or group. `require_signed` is a public key's file.
    """

    max_drop_pp: Annotated[Limit, Field(lt=100)] | None = None
    min_speedup: Limit | None = None
    min_fused_pct: Annotated[Limit, Field(le=100)] | None = None
    min_quantized_pct: Annotated[Limit, Field(le=100)] | None = None
    max_slowdown_pct: Limit | None = None
    max_size_mib: Limit | None = None
    max_memory_mib: Limit | None = None
    max_growth_pct: Limit | None = None
    max_latency_ms: Limit | None = None
    latency_percentile: Literal[50, 90, 99] | None = None
    max_end_to_end_ms: Limit | None = None
    max_energy_mj: Limit | None = None
    energy_rail: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    at_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_count_change_pct: Limit | None = None
    max_regression_pp: Annotated[Limit, Field(lt=100)] | None = None
    max_class_regression_pp: Annotated[Limit, Field(lt=100)] | None = None
    require_signed: Annotated[str, Field(min_length=1, max_length=4096)] | None = None

    @model_validator(mode="after")
    def _check_sizes(self) -> GateSpec:
        if self.max_size_mib and self.max_memory_mib and self.max_memory_mib < self.max_size_mib:
            raise ValueError(
                f"max_memory_mib {self.max_memory_mib:g} and max_size_mib {self.max_size_mib:g} contradict each other: "
                "a loaded model takes at least the size of its file"
            )
        return self


class Recipe(Frozen):
    """One model for one target, with the measurements and limits that it has to meet."""

    model: ModelSpec
    target: TargetSpec
    preprocess: Preprocess | None = None
    task: TaskSpec = TaskSpec()
    data: DataSpec = DataSpec()
    precision: PrecisionSpec = PrecisionSpec()
    tokens: TokensSpec = TokensSpec()
    bench: BenchSpec = BenchSpec()
    gate: GateSpec = GateSpec()

    @field_validator("model", mode="before")
    @classmethod
    def _accept_name(cls, value: Any) -> Any:
        return {"spec": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_preprocess(self) -> Recipe:
        if self.preprocess is not None and self.model.overrides:
            key = next(iter(self.model.overrides))
            raise ValueError(f"model.{key} has no effect beside preprocess: write preprocess.{key}")
        sizes = self.model.size_range
        if self.preprocess is not None and sizes is not None and self.preprocess.size != sizes.opt:
            size = format_size(self.preprocess.size)
            raise ValueError(f"preprocess.size is {size}, and images of model.image_size {sizes} are prepared at OPT")
        return self

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The size that images are prepared at, (height, width): OPT of a range; None for the model's own."""
        size = self.model.image_size
        if size is None:
            return self.preprocess.size if self.preprocess else None
        return size.opt if isinstance(size, SizeRange) else size

    @property
    def digest(self) -> str:
        """The sha256 of the canonical JSON. Equal recipes have equal digests, however their YAML is written."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return the recipe as YAML, without the keys that have their default."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
