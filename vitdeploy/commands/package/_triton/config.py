"""The configuration of one model: tensors, batches, instances and warm-up.

A model batches (`max_batch_size` above 0) if the engine takes every batch from 1 up: Triton then leaves the first
dimension out of `dims`, and its dynamic batcher joins requests. Else `dims` are the full shapes, and each request is
run by itself.

Source: "Model Configuration" in Triton's documentation, and model_config.proto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vitdeploy.artifact import Manifest, TensorSpec
from vitdeploy.commands.package._triton.pbtxt import Symbol, Value, format_message
from vitdeploy.errors import UsageError
from vitdeploy.escaping import escape
from vitdeploy.runtime.artifact_session import fill_shape, takes_no_image, typical_shape
from vitdeploy.version import __version__

CPU, GPU = Symbol("KIND_CPU"), Symbol("KIND_GPU")
_TYPES = {
    "float": "FP32", "float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "double": "FP64", "float64": "FP64",
    "bool": "BOOL", "uint8": "UINT8", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
}  # fmt: skip
_ANY = -1


@dataclass(frozen=True)
class Batching:
    """The batches that a model takes.

    Attributes:
        largest: `max_batch_size`: requests are joined up to it; 0: each is run by itself.
        preferred: the batch that the engine is optimised for.
    """

    largest: int = 0
    preferred: int = 0

    @property
    def joins(self) -> bool:
        """True if the first dimension of all tensors is the batch, and Triton joins requests."""
        return self.largest > 0


@dataclass(frozen=True)
class TritonTensor:
    """An input or output on the server; -1 is a dimension that varies. `dims` have the batch unless it is joined."""

    name: str
    type: Symbol
    dims: tuple[int, ...]
    labels: str = ""

    def describe(self) -> dict[str, Value]:
        """Return the fields of `input` and `output`."""
        described: dict[str, Value] = {"name": self.name, "data_type": self.type, "dims": self.dims}
        return described | ({"label_filename": self.labels} if self.labels else {})


@dataclass(frozen=True)
class ModelConfig:
    """One `config.pbtxt`."""

    name: str
    head: Mapping[str, Value]
    batching: Batching
    inputs: Sequence[TritonTensor]
    outputs: Sequence[TritonTensor]
    kind: Symbol | None = CPU
    parameters: Mapping[str, str] = field(default_factory=dict)
    tail: Mapping[str, Value] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def format(self) -> str:
        """Return the file."""
        fields: dict[str, Value] = {"name": self.name, **self.head, "max_batch_size": self.batching.largest}
        fields["input"] = [tensor.describe() for tensor in self.inputs]
        fields["output"] = [tensor.describe() for tensor in self.outputs]
        if self.batching.joins and self.kind is not None:
            fields["dynamic_batching"] = {"preferred_batch_size": [self.batching.preferred]}
        if self.kind is not None:
            fields["instance_group"] = [{"count": 1, "kind": self.kind}]
        if self.parameters:
            fields["parameters"] = [
                {"key": key, "value": {"string_value": value}} for key, value in self.parameters.items()
            ]
        head = [f"Written by vitdeploy {__version__}.", *self.notes]
        # A note may name what a manifest says. A line end in it would begin a field.
        return "".join(f"# {escape(line)}\n" for line in head) + format_message({**fields, **self.tail})


def list_tensors(specs: Sequence[TensorSpec], names: Sequence[str], batching: Batching) -> list[TritonTensor]:
    """Return inputs or outputs as the server has them.

    Raises:
        UsageError: Triton has no such data type.
    """
    first = 1 if batching.joins else 0
    return [
        TritonTensor(name, data_type(spec), tuple(_ANY if isinstance(d, str) else d for d in spec.shape[first:]))
        for spec, name in zip(specs, names, strict=True)
    ]


def data_type(spec: TensorSpec) -> Symbol:
    """Return the type as `config.pbtxt` has it.

    Raises:
        UsageError: Triton has no such type.
    """
    if spec.dtype not in _TYPES:
        raise UsageError(f"Triton has no data type for {spec.name}, which is {spec.dtype}", fix="Export it again.")
    return Symbol(f"TYPE_{_TYPES[spec.dtype]}")


def choose_batching(manifest: Manifest) -> Batching:
    """Return how requests may be joined: up to the largest batch, if every smaller one is accepted too."""
    batch = manifest.recipe.target.batch
    tensors = [*manifest.inputs, *manifest.outputs]
    varies = all(spec.shape and isinstance(spec.shape[0], str) for spec in tensors)
    return Batching(batch.max, batch.opt) if varies and batch.min == 1 and batch.max > 1 else Batching()


def warm_up(manifest: Manifest, tensors: Sequence[TritonTensor], batching: Batching) -> dict[str, Value]:
    """Return one run of zeros, at the batch and the image size to optimise for, before the model is ready."""
    batch, sizes = manifest.recipe.target.batch, manifest.recipe.model.size_range
    first_is_image = not takes_no_image(manifest)
    shapes = [
        typical_shape(spec, batch, sizes) if first_is_image and place == 0 else fill_shape(spec, batch)
        for place, spec in enumerate(manifest.inputs)
    ]
    first = 1 if batching.joins else 0
    inputs: list[Value] = [
        {"key": tensor.name, "value": {"data_type": tensor.type, "dims": shape[first:], "zero_data": True}}
        for tensor, shape in zip(tensors, shapes, strict=True)
    ]
    size = batching.preferred if batching.joins else 1
    return {"model_warmup": [{"name": "zeros", "batch_size": size, "inputs": inputs}]}
