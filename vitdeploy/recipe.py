"""The recipe: everything that decides an artifact, as data. YAML in, YAML out, and a digest.

A recipe is parsed once, at the edge; nothing in it is executed. An unknown key is an error that names the nearest
known one. Options that belong to one target or one task stay raw here: the class found by its name validates them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vitdeploy.errors import RecipeError
from vitdeploy.plugins import did_you_mean

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-dynamic", "int8-weights", "int4-weights", "fp8"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


class Frozen(BaseModel):
    """An immutable value that accepts no key it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


FrozenT = TypeVar("FrozenT", bound=Frozen)


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
    """What the model is for; other keys are the task's own options."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str = "classification"

    @property
    def options(self) -> dict[str, Any]:
        """The raw options, for the task's class to validate."""
        return dict(self.model_extra or {})


class DataSpec(Frozen):
    """DATA of the command line, for ranges (`calibration`) and for accuracy (`evaluation`)."""

    calibration: str | None = None
    evaluation: str | None = None


class TargetSpec(Frozen):
    """What to compile for; other keys are the target's own options."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str
    device: str | None = None
    batch: Batch = Batch()

    @property
    def options(self) -> dict[str, Any]:
        """The raw options, for the target's class to validate."""
        return dict(self.model_extra or {})


class PrecisionSpec(Frozen):
    """How numbers are stored and multiplied.

    `keep` leaves linears in float, by role (`head`) or by name (`blocks.0.*`).
    """

    kind: Precision | None = None
    smooth_alpha: Literal["auto", "off"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    keep: tuple[str, ...] = ()


class BenchSpec(Frozen):
    """How latency is measured: against what, on how many threads, for about how many seconds."""

    against: Literal["pytorch-fp32"] = "pytorch-fp32"
    threads: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    seconds: Annotated[float, Field(gt=0)] = 10.0


class GateSpec(Frozen):
    """Limits. What is not set is not judged."""

    max_drop_pp: Annotated[float, Field(gt=0)] | None = None
    min_speedup: Annotated[float, Field(gt=0)] | None = None
    min_fused_pct: Annotated[float, Field(ge=0, le=100)] | None = None
    max_slowdown_pct: Annotated[float, Field(gt=0)] | None = None


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
    def digest(self) -> str:
        """sha256 of the canonical JSON: equal recipes, equal digests, whatever the YAML looked like."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The recipe as YAML, without what is at its default."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False)


class _CoreLoader(yaml.SafeLoader):
    """YAML as people read it (the 1.2 core schema): in PyYAML's 1.1, `off` is False and `1:4:8` is 3,848 seconds.

    A key that is given twice is an error: PyYAML would silently take the last.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


_CoreLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] not in ("bool", "int", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_CoreLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_CoreLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_CoreLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def read(path: Path) -> Recipe:
    """The recipe in the YAML file `path`; paths in it are relative to the file.

    Raises:
        RecipeError: the file is missing, is not YAML, or does not fit the schema.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _CoreLoader)  # noqa: S506  a SafeLoader
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}", fix="Run `vitdeploy recipes` for the shipped ones.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", fix="Give a recipe file.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} is not readable YAML: {_yaml_problem(error)}", fix="Mend the file.") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is not a mapping", fix="A recipe has at least the keys model and target.")
    recipe = parse(Recipe, raw, where=str(path))
    return _anchor(recipe, path.resolve().parent)


def parse(kind: type[FrozenT], raw: Mapping[str, Any], *, where: str, beside: tuple[str, ...] = ()) -> FrozenT:
    """`raw` as a `kind`; the first thing that does not fit becomes one line that names the key.

    `beside`: keys of the same mapping that somebody else has read, for the hint at the nearest known key.

    Raises:
        RecipeError: unknown key (with the nearest known one), missing key, or a value that does not fit.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        loc = [str(part) for part in first["loc"]]
        if first["type"] == "extra_forbidden":
            known = [*beside, *_keys_at(kind, loc[:-1])]
            fix = f"Known keys there: {', '.join(known)}."
            message = f"{where}: unknown key {'.'.join(loc)!r}{did_you_mean(loc[-1], known)}"
        elif first["type"] == "missing":
            message, fix = f"{where}: {'.'.join(loc)!r} is missing", "Add it."
        elif first["type"] in ("model_type", "dict_type"):
            message = f"{where}: {'.'.join(loc) or 'it'} is {first['input']!r}, not a mapping"
            fix = f"Give it keys of its own: {', '.join(_keys_at(kind, loc))}."
        else:
            message, fix = f"{where}: {_misfit(kind, error)}", "Correct it."
        raise RecipeError(message, fix=fix) from None


def _misfit(kind: type[BaseModel], error: ValidationError) -> str:
    """`gate.max_drop_pp should be greater than 0, not -1`; of a union, what each of its forms wants."""
    errors = error.errors(include_url=False)
    field = _field_of(kind, errors[0]["loc"])
    wanted = [e["msg"].removeprefix("Value error, ") for e in errors if _field_of(kind, e["loc"]) == field]
    if all(text.startswith("Input ") for text in wanted):
        forms = " or ".join(text.removeprefix("Input ") for text in wanted)
        return f"{field or 'it'} {forms}, not {errors[0]['input']!r}"
    return f"{field}: {wanted[0]}" if field else wanted[0]


def _field_of(kind: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The dotted name of the field, without the union members that pydantic appends."""

    def parts() -> Iterator[str]:
        for depth, part in enumerate(loc):
            if isinstance(part, str) and part not in _keys_at(kind, [str(p) for p in loc[:depth]]):
                return
            yield str(part)

    return ".".join(parts())


def _keys_at(kind: type[BaseModel], loc: list[str]) -> list[str]:
    for part in loc:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        inner = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        kind = next((a for a in inner if issubclass(a, BaseModel)), kind)
    return list(kind.model_fields)


def _anchor(recipe: Recipe, base: Path) -> Recipe:
    """Paths relative to the recipe's folder become absolute; names with a scheme (`timm:`, `demo:`) stay."""

    def path(value: str | None) -> str | None:
        return None if value is None or _is_name(value) else str(base / value)

    model = recipe.model
    spec = model.spec
    if spec.endswith((".onnx", ".pt2")):
        spec = str(base / spec)
    elif spec.startswith("python:") and spec.rpartition(":")[0].endswith(".py"):
        file, _, factory = spec.removeprefix("python:").rpartition(":")
        spec = f"python:{base / file}:{factory}"
    elif spec.startswith("hf:") and (base / spec[3:]).is_dir():
        spec = f"hf:{base / spec[3:]}"
    weights = model.weights if model.weights in (None, "pretrained", "random") else str(base / str(model.weights))
    data = DataSpec(
        calibration=path(recipe.data.calibration) or recipe.data.calibration,
        evaluation=path(recipe.data.evaluation) or recipe.data.evaluation,
    )
    return recipe.model_copy(
        update={"model": model.model_copy(update={"spec": spec, "weights": weights}), "data": data}
    )


def _is_name(value: str) -> bool:
    return bool(re.match(r"[a-z0-9-]+:", value))


def _yaml_problem(error: Exception) -> str:
    """`line 3: expected ',' or ']'`; what has no line is said as it stands."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())[:300]


def compose(
    model: str | None = None,
    *,
    base: Recipe | None = None,
    target: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    weights: str | None = None,
    calibration: str | None = None,
    evaluation: str | None = None,
    batch: str | int | None = None,
    image_size: str | None = None,
) -> Recipe:
    """A recipe from the flags of the command line, over `base` where there is one: what is given wins.

    Raises:
        RecipeError: a value does not fit.
    """
    raw: dict[str, Any] = base.model_dump(mode="json") if base is not None else {"model": {}, "target": {}}

    def put(section: str, **values: object) -> None:
        raw.setdefault(section, {}).update({k: v for k, v in values.items() if v is not None})

    put("model", spec=model, weights=weights, image_size=_parse_size(image_size))
    if target is not None and raw["target"].get("kind") not in (None, target):
        raw["target"] = {"batch": raw["target"].get("batch", 1)}  # another target's options do not carry over
    put("target", kind=target, device=device, batch=batch)
    put("precision", kind=precision)
    put("data", calibration=calibration, evaluation=evaluation)
    return parse(Recipe, raw, where="flags" if base is None else "recipe and flags")


def _parse_size(text: str | None) -> list[int] | None:
    """`224` or `HxW` as [height, width]."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if found is None:
        raise RecipeError(f"--image-size {text!r} is not a size", fix="Give HxW, such as 224x224.")
    return [int(found[1]), int(found[2] or found[1])]
