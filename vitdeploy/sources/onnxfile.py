"""`FILE.onnx`: a graph that was exported elsewhere, used as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vitdeploy.data.example_inputs import read_examples
from vitdeploy.errors import GraphError, SourceError
from vitdeploy.plain_files import expand_home
from vitdeploy.recipe import ModelSpec, SizeRange
from vitdeploy.sources import FileSource, LoadedModel, _image, _metadata
from vitdeploy.sources._bind import digest_binds
from vitdeploy.sources._onnx_inputs import bind_inputs
from vitdeploy.sources._onnx_patches import find_patch
from vitdeploy.sources._onnx_precision import raise_precision, write_raised

if TYPE_CHECKING:
    import onnx_ir as ir

_IMAGE_CHANNELS = (1, 3)
_IMAGE_AXES = (4, 5)  # NCHW, and NTCHW for clips of frames
_MAX_PIXELS = 1 << 26  # 8192 x 8192: 0.8 GiB in float32, and making an example image takes several times as much
_CHUNK_BYTES = 1 << 20


class OnnxFile(FileSource):
    """An ONNX file with an image input; others are fixed, or have examples. It contains its own weights."""

    takes_size_range: ClassVar[bool] = True
    takes_inputs: ClassVar[bool] = True

    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """Load the file. What its metadata does not say about preprocessing is assumed: ImageNet's."""
        from vitdeploy.graph.model import load
        from vitdeploy.graph.screening import screen

        if spec.weights is not None or spec.kwargs:
            raise SourceError(f"{argument} contains its own weights", fix="Leave out --weights and model.kwargs.")
        path = expand_home(argument)
        model = load(path).model
        graph = model.graph
        digest = _digest(path, graph)  # of the file as it is: weights are replaced below
        precision, was_raised = raise_precision(model)
        screen(model, path)
        examples = read_examples(spec.open_inputs)
        image, others = _find_image_input(path, graph, [*spec.fixed_inputs, *examples.arrays])
        facts = _metadata.read_metadata(dict(model.metadata_props))
        sides, channels, frames = _read_image_shape(path, image)
        patch = None if all(sides) else find_patch(image)
        shown = size or ((sides[0] or 1, sides[1] or 1) if all(sides) else None)
        binds, examples = bind_inputs(path, graph, image, others, spec.fixed_inputs, shown, examples)
        digest = digest_binds(digest, binds)
        written = digest_binds(digest, {name: np.array(array.shape[1:]) for name, array in examples.arrays.items()})
        _image.check_range(path, sides, spec.size_range)
        if frames is not None and spec.size_range is not None:
            raise SourceError(f"{path} takes clips, which have one size", fix="Give one size with --image-size HxW.")
        image_size = _image.resolve_size(path, sides, size or (None if all(sides) else facts.size))
        for verified in (image_size,) if spec.size_range is None else spec.size_range.corners:
            _check_size(path, verified, patch, spec.size_range)
        preprocess, assumed = facts.prepare(image_size, channels, frames)
        return LoadedModel(
            weights="own",
            digest=digest,
            parameters=sum(v.const_value.size for v in graph.initializers.values() if v.const_value is not None),
            preprocess=preprocess,
            labels=facts.labels,
            input_name=str(image.name),
            onnx=write_raised(model, path, written) if was_raised or binds or examples else path,
            further=examples,
            patch=patch,
            precision=precision,
            assumed=assumed,
            metadata=facts.read,
        )

    def is_quantized(self, argument: str) -> bool:
        """Return True if the graph has operators that quantize or compute in integers."""
        from vitdeploy.graph.model import load
        from vitdeploy.graph.screening import is_quantized

        try:
            return is_quantized(load(expand_home(argument)).model)
        except GraphError:
            return False


def _find_image_input(path: Path, graph: ir.Graph, bound: Collection[str]) -> tuple[ir.Value, list[ir.Value]]:
    """Return the input that takes images, and the others. The first float32 NCHW input that is not given is it."""
    import onnx_ir as ir

    inputs = [v for v in graph.inputs if v.name not in graph.initializers]
    listed = ", ".join(f"{v.name}: {v.dtype}{v.shape}" for v in inputs) or "none"
    if not inputs:
        raise GraphError(f"{path} has no inputs", fix="Export it with one image input.")
    batches = [v for v in inputs if v.shape is not None and len(v.shape) in _IMAGE_AXES]
    image = next((v for v in batches if v.dtype == ir.DataType.FLOAT and v.name not in bound), None)
    if image is None and any(v.dtype == ir.DataType.FLOAT for v in inputs):
        raise GraphError(f"{path}: its input is not a batch of images ({listed})", fix="Export it with an NCHW input.")
    if image is None:
        raise GraphError(f"{path}: its input is not float32 ({listed})", fix="Export it with a float32 image input.")
    return image, [v for v in inputs if v is not image]


def _read_image_shape(path: Path, image: ir.Value) -> tuple[tuple[int | None, int | None], int, int | None]:
    """Return height and width of the input (None for a side that varies), the number of channels, and of frames.

    The number of frames is None for single images.

    Raises:
        GraphError: the input is empty, or neither NCHW nor NTCHW with 1 or 3 channels.
    """
    from vitdeploy.graph.model import dims

    shape = dims(image) or (None,) * min(_IMAGE_AXES)
    batch, channels, height, width = shape[0], *shape[-3:]
    if 0 in (batch, height, width):
        raise GraphError(f"{path}: its input {image.name}{image.shape} is empty", fix="Export it with a real size.")
    if len(shape) == max(_IMAGE_AXES):
        if channels not in _IMAGE_CHANNELS or not shape[1]:
            raise GraphError(
                f"{path}: its input {image.name}{image.shape} is not clips as (batch, frames, channels, height, width)",
                fix="Export it in that order, with 1 or 3 channels and a fixed number of frames.",
            )
        return (height, width), int(channels), int(shape[1])
    if channels not in _IMAGE_CHANNELS:
        if width in _IMAGE_CHANNELS:
            raise GraphError(
                f"{path}: its input {image.name}{image.shape} is NHWC, channels last",
                fix="Export it channels first (NCHW); tf2onnx does it with --inputs-as-nchw.",
            )
        raise GraphError(
            f"{path}: its input {image.name}{image.shape} does not have 1 or 3 channels in second place",
            fix="Export it with an image input, NCHW.",
        )
    return (height, width), int(channels), None


def _check_size(path: Path, size: tuple[int, int], patch: tuple[int, int] | None, sizes: SizeRange | None) -> None:
    """Refuse a size of which a side is not a multiple of the patch, and one that is too large."""
    if patch is not None:
        _image.check_patch(str(path), size, patch, sizes)
    if size[0] * size[1] > _MAX_PIXELS:
        raise GraphError(f"{path}: images of {size[0]}x{size[1]} are too large", fix="Use 8192x8192 pixels or fewer.")


def _digest(path: Path, graph: ir.Graph) -> str:
    """Return the sha256 of the file and of its external data, in the order of their names."""
    import onnx_ir as ir

    tensors = (v.const_value for v in graph.initializers.values())
    files = {Path(t.path).resolve() for t in tensors if isinstance(t, ir.ExternalTensor)}
    sha = hashlib.sha256()
    for file in (path, *sorted(files)):
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                sha.update(chunk)
    return sha.hexdigest()
