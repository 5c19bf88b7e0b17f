"""Inputs of a model beside the image, as a recipe lists them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vitdeploy.frozen import Frozen

DType = Literal["float32", "int64", "int32", "uint8", "int8", "bool"]
Side = Annotated[int, Field(ge=1)]


class InputSpec(Frozen):
    """An input beside the image: fixed to a value, or open, with examples.

    Attributes:
        value: a number, lists of numbers, or a file `.npz`. The input becomes a constant.
        examples: a file `.npz` with an array of the input's name, or with one array: (examples, …). The input stays one
            of the artifact, and these are used in turn where the data has no values for it.
        array: the name of the array in that file; None: the input's.
        dtype: the type of the examples; None: as in the file, or as an ONNX file says.
        shape: their shape, "batch" first; None: as in the file.
    """

    value: Any = None
    examples: str | None = None
    array: str | None = None
    dtype: DType | None = None
    shape: tuple[Literal["batch"] | Side, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_file(cls, value: Any) -> Any:
        return {"examples": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> InputSpec:
        if (self.value is None) == (self.examples is None):
            raise ValueError("give a value, which fixes the input, or examples, with which it stays open")
        if self.value is not None and (self.dtype or self.shape):
            raise ValueError("dtype and shape are for examples: a value gets those of the input")
        if self.shape is not None and (not self.shape or self.shape[0] != "batch" or "batch" in self.shape[1:]):
            raise ValueError("shape begins with batch: [batch, 4]")
        return self
