"""What a recipe may say: its sections, their keys and what values fit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, field_validator, model_validator

from vitdeploy.frozen import Frozen
from vitdeploy.plugins import did_you_mean, names_in

AUTO = "auto"
"""The `--precision` that is none: the fastest of those that the target has, within the accuracy budget."""

InputForm = Literal["normalized", "pixels", "uint8"]
"""What an artifact takes: float32 (x / 255 - mean) / std; float32 pixels from 0 to 255; or uint8 pixels. NCHW, RGB."""
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
REFERENCE = "pytorch-fp32"
"""What an artifact is timed against unless the recipe says otherwise."""


class Batch(Frozen):
    """Batch sizes an artifact serves: one (static), or a range with the size to optimise for."""

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
    def _ordered(self) -> Batch:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"{self} is not ordered: MIN <= OPT <= MAX")
        return self

    @property
    def static(self) -> bool:
        """Whether the graph has one fixed batch size."""
        return self.min == self.max

    def __str__(self) -> str:
        return str(self.opt) if self.static else f"{self.min}:{self.opt}:{self.max}"


class ModelSpec(Frozen):
    """Which model, with which weights. `spec` is MODEL of the command line; `kwargs` go to its factory."""

    spec: str
    weights: str | None = None
    kwargs: Mapping[str, Any] = {}
    image_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None


class Preprocess(Frozen):
    """From an image file to the model's input: resize, centre crop, [0, 1], (x - mean) / std, NCHW float32.

    `resize` is "shortest" (the shorter side becomes size / crop_pct, then the centre is cropped) or "exact" (both
    sides become `size`, the aspect ratio is not kept).
    """

    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bicubic"
    channels: Literal[1, 3] = 3
    resize: Literal["shortest", "exact"] = "shortest"
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Preprocess:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} values each, one for each channel")
        if min(self.std) <= 0:
            raise ValueError("every std must be above 0")
        return self


class TaskSpec(Frozen):
    """What the model is for; other keys are the task's own options. Without a kind, it is what the model says."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The raw options, for the task's class to validate."""
        return dict(self.model_extra or {})


class DataSpec(Frozen):
    """DATA of the command line, for ranges (`calibration`) and for accuracy (`evaluation`)."""

    calibration: str | None = None
    evaluation: str | None = None
    calibration_images: Annotated[int, Field(ge=1)] = 128
    """At most so many are used: 32 to 300 are enough for ranges; the spread between draws of 32 is below 0.1 points."""


class TargetSpec(Frozen):
    """What to compile for; other keys are the target's own options."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str
    device: str | None = None
    batch: Batch = Batch()
    input: InputForm = "normalized"

    @property
    def options(self) -> dict[str, Any]:
        """The raw options, for the target's class to validate."""
        return dict(self.model_extra or {})


class PrecisionSpec(Frozen):
    """How numbers are stored and multiplied.

    `keep` leaves linears in float, by role (`head`) or by name (`blocks.0.*`). `max_drop_pp` is what may be lost, in
    points: of top-1 where the calibration images have labels, else of agreement with float32. `attention` puts the two
    products of each attention into INT8 as well, where the target keeps them in one kernel. `group`, of int4-weights:
    how many inputs of a linear share a scale; fewer are more exact and larger.
    """

    kind: str | None = None
    """A file of `precision/`, or "auto": the fastest that the target has, within `max_drop_pp`."""
    smooth_alpha: Literal["auto", "off"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    keep: tuple[str, ...] = ()
    attention: bool = False
    max_drop_pp: Annotated[float, Field(gt=0)] | None = None
    group: Literal[32, 64, 128] = 64

    @field_validator("kind")
    @classmethod
    def _exists(cls, value: str | None) -> str | None:
        choices = [*names_in("precision"), AUTO]
        if value is not None and value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}{did_you_mean(value, choices)}")
        return value


class BenchSpec(Frozen):
    """How latency is measured: against what, on how many threads, for about how many seconds."""

    against: str = REFERENCE
    """The name of an opponent (`commands.bench.opponents.names`), or the folder of another artifact."""
    threads: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    seconds: Annotated[float, Field(gt=0)] = 10.0


Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GateSpec(Frozen):
    """Limits. What is not set is not judged; zero is no limit that anything could keep or that would mean anything.

    `max_growth_pct` is of files and memory against a baseline.
    """

    max_drop_pp: Annotated[Limit, Field(lt=100)] | None = None
    min_speedup: Limit | None = None
    min_fused_pct: Annotated[Limit, Field(le=100)] | None = None
    max_slowdown_pct: Limit | None = None
    max_size_mib: Limit | None = None
    max_memory_mib: Limit | None = None
    max_growth_pct: Limit | None = None

    @model_validator(mode="after")
    def _possible(self) -> GateSpec:
        if self.max_size_mib and self.max_memory_mib and self.max_memory_mib < self.max_size_mib:
            raise ValueError(
                f"max_memory_mib {self.max_memory_mib:g} and max_size_mib {self.max_size_mib:g} contradict each other: "
                "what is loaded takes at least its size"
            )
        return self


class Recipe(Frozen):
    """One model for one target, with the evidence it owes."""

    model: ModelSpec
    target: TargetSpec
    preprocess: Preprocess | None = None
    task: TaskSpec = TaskSpec()
    data: DataSpec = DataSpec()
    precision: PrecisionSpec = PrecisionSpec()
    bench: BenchSpec = BenchSpec()
    gate: GateSpec = GateSpec()

    @field_validator("model", mode="before")
    @classmethod
    def _spec_alone(cls, value: Any) -> Any:
        return {"spec": value} if isinstance(value, str) else value

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) that the model is loaded for; None for its own."""
        return self.model.image_size or (self.preprocess.size if self.preprocess else None)

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON: equal recipes, equal digests, whatever the YAML looked like."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The recipe as YAML, without what is at its default."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
