"""`FILE.pt2`: a program saved by torch.export.save, loaded only if loading cannot run code in the file."""

from __future__ import annotations

import importlib
import inspect
import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vitdeploy.data.example_inputs import ExampleInputs, read_examples
from vitdeploy.errors import SourceError
from vitdeploy.plain_files import expand_home
from vitdeploy.recipe import ModelSpec
from vitdeploy.session import Array
from vitdeploy.sources import FileSource, LoadedModel, _archive, _image, _metadata, _pt2_check, _weights
from vitdeploy.sources._bind import Input, check_names, explain_unbound, fit_array, fit_examples, read_binds

if TYPE_CHECKING:
    from torch import nn

_HF_OUTPUTS = "transformers.modeling_outputs"
_SHOWN_DANGERS = 3
_IMAGE_AXES = (4, 5)  # NCHW, and NTCHW for clips of frames
_AGAIN = "Export the model in eval mode with one NCHW float32 input, and save it with torch.export.save."
_DROPOUTS = ("aten.dropout", "aten.native_dropout", "aten.feature_dropout")


class Pt2File(FileSource):
    """A torch.export archive with an image input; others are fixed, or have examples. It contains its own weights."""

    takes_inputs: ClassVar[bool] = True

    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """Load the program. It does not say its preprocessing: ImageNet's is assumed."""
        if spec.weights is not None or spec.kwargs:
            raise SourceError(f"{argument} contains its own weights", fix="Leave out --weights and model.kwargs.")
        path = expand_home(argument)
        if not path.is_file():
            raise SourceError(f"there is no file {path}", fix="Check the path.")
        program = _load_program(path, _check_archive(path))
        _check_shapes(path, program)
        fixed, examples = spec.fixed_inputs, read_examples(spec.open_inputs)
        given = [*fixed, *examples.arrays]
        name, image, others = _list_inputs(path, program, given)
        frames, channels, height, width = _read_image_shape(path, image, size)
        check_names(str(path), given, [place.name for place in others])
        if unbound := [place for place in others if place.name not in given]:
            needed, fix = explain_unbound(name, unbound, (height, width))
            raise SourceError(f"{path}: {needed}", fix=fix)
        values, places = read_binds(fixed), {place.name: place for place in others}
        binds = {name: fit_array(value, places[name]) for name, value in values.items()}
        examples = ExampleInputs({n: fit_examples(array, places[n]) for n, array in examples.arrays.items()})
        preprocess, assumed = _metadata.FileFacts().prepare((height, width), channels, frames)
        loaded = _weights.make_loaded_model(
            _make_module(path, program, binds, list(examples.arrays)), weights="own", preprocess=preprocess, labels=None
        )
        return replace(loaded, assumed=assumed, further=examples)


def _check_archive(path: Path) -> bytes:
    """Return the text of the program. Refuse the archive before anything in it is unpickled or evaluated."""
    import torch

    if not zipfile.is_zipfile(path):
        raise SourceError(f"{path} is not a torch.export archive, or it is truncated", fix=_AGAIN)
    try:
        reader: Any = torch._C.PyTorchFileReader(str(path))
        _archive.refuse_packed(path, reader)
        _archive.refuse_damaged(path)
        dangers = list(_pt2_check.find_dangers(reader.get_all_records(), reader.get_record))
        wrong = (
            []
            if dangers
            else list(_pt2_check.find_wrong_sizes(reader.get_record, partial(_archive.record_size, reader)))
        )
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{path} is a damaged archive: {' '.join(str(error).split())[:200]}", fix=_AGAIN) from None
    if dangers:
        more = f" (and {len(dangers) - _SHOWN_DANGERS} more)" if len(dangers) > _SHOWN_DANGERS else ""
        raise SourceError(
            f"{path} is refused, because loading it could run code in it: {'; '.join(dangers[:_SHOWN_DANGERS])}{more}",
            fix="Give a plain torch.export.save archive, or FILE.onnx.",
        )
    if wrong:
        raise SourceError(f"{path} is damaged: {wrong[0]}", fix=_AGAIN)
    return bytes(reader.get_record(_pt2_check.PROGRAM))


def _load_program(path: Path, text: bytes) -> Any:
    try:
        # torch.export.load would fall back to the old format, which is a pickle.
        from torch.export.pt2_archive._package import load_pt2
    except ImportError:
        raise SourceError(
            f"{path} needs a newer torch", fix="Update torch to 2.9 or newer, or give FILE.onnx."
        ) from None
    if _HF_OUTPUTS.encode() in text:
        importlib.import_module(_HF_OUTPUTS)  # it registers the types that an exported transformers model returns
    try:
        return load_pt2(str(path)).exported_programs["model"]
    except Exception as error:  # every version of the format has errors of its own
        raise SourceError(
            f"{path} cannot be loaded by this torch: {' '.join(str(error).split())[:200]}", fix=_AGAIN
        ) from error


def _check_shapes(path: Path, program: Any) -> None:
    """Refuse weights of another shape or type than the program was traced with: it may run, with other numbers."""
    signature = program.graph_signature
    places = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    places.update(signature.inputs_to_lifted_tensor_constants)
    for node in program.graph.nodes:
        name = places.get(node.name) if node.op == "placeholder" else None
        tensor = program.state_dict.get(name, program.constants.get(name))
        traced = node.meta.get("val")
        if tensor is not None and traced is not None and _describe(tensor) != _describe(traced):
            raise SourceError(
                f"{path} is damaged: {name!r} is {_describe(tensor)}, but the program was traced with "
                f"{_describe(traced)}",
                fix=_AGAIN,
            )


def _describe(tensor: Any) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _make_module(path: Path, program: Any, binds: Mapping[str, Array], open_names: Sequence[str]) -> nn.Module:
    """Wrap the program in a module whose `eval()` does nothing: its mode was fixed at export. Torch's own raises."""
    import torch

    names = tuple(program.graph_signature.user_inputs)
    inputs = program.call_spec.in_spec

    class Exported(torch.nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            for name, value in binds.items():
                self.register_buffer(f"bound_{name}", torch.from_numpy(value))

        def forward(self, input: torch.Tensor, **others: torch.Tensor) -> Any:
            if not binds and not open_names:
                return self.inner(input)
            flat = [getattr(self, f"bound_{n}") if n in binds else others.get(n, input) for n in names]
            arguments, options = torch.utils._pytree.tree_unflatten(flat, inputs)
            return self.inner(*arguments, **options)

        def train(self, mode: bool = True) -> Exported:
            self.training = mode
            return self

    for node in program.graph.nodes:
        if str(node.target).startswith(_DROPOUTS) and node.args[-1] is True:
            raise SourceError(f"{path} was exported in training mode: {node.name} drops values", fix=_AGAIN)
    # Torch would run the guards in the file, which are Python source. `_read_image_shape` checks the shape instead.
    guards = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    return Exported(program.module(**guards))


def _list_inputs(path: Path, program: Any, bound: Collection[str]) -> tuple[str, Any, list[Input]]:
    """Return name and value of the image, the first NCHW float32 input that is not bound, and the other inputs."""
    import torch

    names = program.graph_signature.user_inputs
    values = {
        node.name: node.meta.get("val")
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    }
    if not values or not all(isinstance(value, torch.Tensor) for value in values.values()):
        raise SourceError(f"{path} has inputs that are no tensors, or none", fix=_AGAIN)
    batches = [n for n, v in values.items() if n not in bound and v.dim() in _IMAGE_AXES and v.dtype == torch.float32]
    image = next(iter(batches), next(iter(values)))
    others = [
        Input(name, torch.empty(0, dtype=value.dtype).numpy().dtype, tuple(map(_read_side, value.shape)))
        for name, value in values.items()
        if name != image
    ]
    return image, values[image], others


def _read_side(side: Any) -> int | None:
    return int(side) if str(side).isdigit() else None


def _read_image_shape(path: Path, value: Any, size: tuple[int, int] | None) -> tuple[int | None, int, int, int]:
    """Return the number of frames (None for single images), channels, height and width."""
    import torch

    if value.dtype != torch.float32 or value.dim() not in _IMAGE_AXES or value.shape[-3] not in (1, 3):
        shape = json.dumps([str(d) for d in value.shape])
        raise SourceError(
            f"{path}: its input is {value.dtype} {shape}, not float32 NCHW with 1 or 3 channels", fix=_AGAIN
        )
    frames = _read_side(value.shape[1]) if value.dim() == max(_IMAGE_AXES) else None
    if frames is None and value.dim() == max(_IMAGE_AXES):
        raise SourceError(f"{path}: the number of frames of its clips varies", fix=_AGAIN)
    height, width = map(_read_side, value.shape[-2:])
    return frames, int(value.shape[-3]), *_image.resolve_size(path, (height, width), size)
