"""The section `model` of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from vitdeploy.frozen import Frozen
from vitdeploy.recipe.image_size import ImageSize, SizeRange
from vitdeploy.recipe.inputs import InputSpec
from vitdeploy.recipe.preprocess import Interpolation, Resize
from vitdeploy.recipe.prompts import check_prompts, check_templates, split_prompts

ALL_OUTPUTS = "all"
"""The value of `model.outputs` that keeps every output."""
ENCODER, DECODER = "encoder", "decoder"
"""The parts of a model that becomes a family of artifacts."""

Statistics = tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
"""One number for each channel."""


class ModelSpec(Frozen):
    """A model and its weights. `spec` is MODEL of the command line; `kwargs` go to the model's factory.

    Attributes:
        weights_key: the keys that lead to the state dict in a checkpoint, joined by dots; "ema" stands for the
            averaged weights. None: the first of those that training scripts use.
        num_classes: the number of outputs of the head; 0 for none. None: as the checkpoint has.
        labels: the names of the classes in the order of the outputs: a file (see `data.label_file`), or "imagenet".
            None: the model's own.
        prompts: the texts that a model with a text tower answers with. The tower runs once, at export.
        templates: texts with a `{}`, into which each prompt is put. Of several the mean is taken.
        bind: values of the model's inputs beside the image: numbers, lists of numbers, or a file `.npz`.
        inputs: those inputs with a value or with examples: see `InputSpec`.
        outputs: the names of the outputs to export, or "all". None: those that the task reads, if the model or the
            recipe names a task that can read them; else all.
        part: the part of a model in several parts; None for all of the model.
        image_size: height and width of the images, or a range of sizes. None: the model's own.
        resize, mean, std, interpolation, crop_pct: override the model's own preprocessing: see `Preprocess`.
    """

    spec: str
    weights: str | None = None
    weights_key: str | None = None
    num_classes: Annotated[int, Field(ge=0)] | None = None
    kwargs: Mapping[str, Any] = {}
    image_size: ImageSize | None = None
    labels: str | None = None
    prompts: tuple[str, ...] | None = None
    templates: tuple[str, ...] = ()
    bind: Mapping[str, Any] = {}
    inputs: Mapping[str, InputSpec] = {}
    outputs: Literal["all"] | tuple[str, ...] | None = None
    part: Literal["encoder", "decoder"] | None = None
    resize: Resize | None = None
    mean: Statistics | None = None
    std: Statistics | None = None
    interpolation: Interpolation | None = None
    crop_pct: Annotated[float, Field(gt=0, le=4)] | None = None

    @model_validator(mode="after")
    def _check_statistics(self) -> ModelSpec:
        mean, std = self.mean, self.std
        if (mean is None) != (std is None):
            raise ValueError("mean and std belong together: give both")
        if mean is not None and std is not None:
            if len(mean) != len(std) or len(mean) not in (1, 3):
                raise ValueError(f"mean has {len(mean)} values and std {len(std)}; give 1 each for grey, 3 for colours")
            if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
                raise ValueError("mean and std are for pixels from 0 to 1: divide those for 0 to 255 by 255")
        return self

    @field_validator("prompts", mode="before")
    @classmethod
    def _split_prompts(cls, value: Any) -> Any:
        return split_prompts(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_prompts(self) -> ModelSpec:
        if self.prompts is None:
            if self.templates:
                raise ValueError("templates are for prompts: give those too (prompts, --prompts)")
            return self
        check_prompts(self.prompts)
        check_templates(self.templates)
        if self.num_classes is not None:
            raise ValueError("prompts say how many classes there are: leave out num_classes (--num-classes)")
        return self

    @field_validator("outputs", mode="before")
    @classmethod
    def _split_outputs(cls, value: Any) -> Any:
        if isinstance(value, str) and value != ALL_OUTPUTS:
            return [name.strip() for name in value.split(",")]
        return value

    @field_validator("outputs")
    @classmethod
    def _check_outputs(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(value, tuple):
            if not value or not all(name.strip() for name in value):
                raise ValueError("an output has no name: give names of outputs, or all")
            if len(set(value)) < len(value):
                raise ValueError(f"an output is there twice: {', '.join(value)}")
        return value

    @model_validator(mode="after")
    def _check_inputs(self) -> ModelSpec:
        twice = [name for name in self.inputs if name in self.bind]
        if twice:
            raise ValueError(f"the input {twice[0]} is in bind and in inputs: give it once")
        if self.size_range is not None and self.open_inputs:
            raise ValueError("a range of image sizes is for models with one input: give one size, or fix the others")
        return self

    @property
    def fixed_inputs(self) -> dict[str, Any]:
        """The values of the inputs that are fixed, by name."""
        values = {name: spec.value for name, spec in self.inputs.items() if spec.value is not None}
        return {**self.bind, **values}

    @property
    def open_inputs(self) -> dict[str, InputSpec]:
        """The inputs beside the image that stay inputs of the artifact, by name."""
        return {name: spec for name, spec in self.inputs.items() if spec.value is None}

    @property
    def size_range(self) -> SizeRange | None:
        """The range of image sizes; None for one size."""
        return self.image_size if isinstance(self.image_size, SizeRange) else None

    @property
    def overrides(self) -> dict[str, Any]:
        """The keys of the preprocessing that are set here."""
        keys = ("resize", "mean", "std", "interpolation", "crop_pct")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}
