"""`FILE.pt2`: a program saved by torch.export.save, loaded only if loading cannot run code in the file."""

from __future__ import annotations

import importlib
import inspect
import json
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import SourceError
from vitdeploy.plain_files import expand_home
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import FileSource, LoadedModel, _archive, _image, _metadata, _pt2_check, _weights

if TYPE_CHECKING:
    from torch import nn

_HF_OUTPUTS = "transformers.modeling_outputs"
_SHOWN_DANGERS = 3
_AGAIN = "Export the model in eval mode with one NCHW float32 input, and save it with torch.export.save."
_DROPOUTS = ("aten.dropout", "aten.native_dropout", "aten.feature_dropout")


class Pt2File(FileSource):
    """A torch.export archive with one image input. It contains its own weights."""

    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """Load the program. It does not say its preprocessing: ImageNet's is assumed."""
        if spec.weights is not None or spec.kwargs:
            raise SourceError(f"{argument} contains its own weights", fix="Leave out --weights and model.kwargs.")
        path = expand_home(argument)
        if not path.is_file():
            raise SourceError(f"there is no file {path}", fix="Check the path.")
        program = _load_program(path, _check_archive(path))
        _check_shapes(path, program)
        channels, height, width = _read_image_shape(path, program, size)
        preprocess, assumed = _metadata.FileFacts().prepare((height, width), channels)
        loaded = _weights.make_loaded_model(
            _make_module(path, program), weights="own", preprocess=preprocess, labels=None
        )
        return replace(loaded, assumed=assumed)


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


def _make_module(path: Path, program: Any) -> nn.Module:
    """Wrap the program in a module whose `eval()` does nothing: its mode was fixed at export. Torch's own raises."""
    import torch

    class Exported(torch.nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: torch.Tensor) -> Any:
            return self.inner(images)

        def train(self, mode: bool = True) -> Exported:
            self.training = mode
            return self

    for node in program.graph.nodes:
        if str(node.target).startswith(_DROPOUTS) and node.args[-1] is True:
            raise SourceError(f"{path} was exported in training mode: {node.name} drops values", fix=_AGAIN)
    # Torch would run the guards in the file, which are Python source. `_read_image_shape` checks the shape instead.
    guards = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    return Exported(program.module(**guards))


def _read_image_shape(path: Path, program: Any, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Return channels, height and width of the program's only input."""
    import torch

    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    values = [node.meta.get("val") for node in nodes]
    if len(names) != 1 or not isinstance(values[0], torch.Tensor):
        raise SourceError(f"{path} has {len(names)} inputs, not one image", fix=_AGAIN)
    value = values[0]
    if value.dtype != torch.float32 or value.dim() != 4 or value.shape[1] not in (1, 3):
        shape = json.dumps([str(d) for d in value.shape])
        raise SourceError(
            f"{path}: its input is {value.dtype} {shape}, not float32 NCHW with 1 or 3 channels", fix=_AGAIN
        )
    height, width = (int(side) if str(side).isdigit() else None for side in value.shape[2:])
    return int(value.shape[1]), *_image.resolve_size(path, (height, width), size)
