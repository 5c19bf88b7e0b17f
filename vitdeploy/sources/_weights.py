"""Weights: their origin, reading them from a file without running code, and their digest."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitdeploy.data.pixel_check import OwnProcessor
from vitdeploy.errors import SourceError
from vitdeploy.plain_files import expand_home
from vitdeploy.recipe import ModelSpec, Preprocess, TaskSpec
from vitdeploy.sources import LoadedModel, WeightsOrigin
from vitdeploy.sources._archive import refuse_damaged
from vitdeploy.sources._code_digest import code_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

_SEED = 0
_NESTED = ("state_dict", "model")  # keys under which training scripts put the state dict inside a checkpoint
_MAX_NESTING = 4
_SUFFIXES = (".safetensors", ".pt", ".pth")


def find_weights(spec: ModelSpec) -> Literal["pretrained", "random"] | Path:
    """Return "pretrained", "random", or the path of an existing weights file.

    Raises:
        SourceError: the file is missing or is of no known kind.
    """
    if spec.weights is None or spec.weights == "pretrained":
        return "pretrained"
    if spec.weights == "random":
        return "random"
    path = expand_home(spec.weights)
    if path.suffix not in _SUFFIXES:
        raise SourceError(
            f"{spec.weights!r} is not a weights file", fix=f"Give pretrained, random, or a {', '.join(_SUFFIXES)} file."
        )
    if not path.is_file():
        raise SourceError(f"there is no weights file {path}", fix="Check the path.")
    return path


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Initialise modules inside the block with the same random numbers each time.

    The caller's random generator is not changed.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


def missing_weights(model: str, reason: object) -> SourceError:
    """Return the error for a model without pretrained weights. Random ones are used only on request."""
    text = " ".join(str(reason).split())[:300]
    return SourceError(
        f"the pretrained weights of {model} are not available: {text}",
        fix="Give a file with --weights FILE, or use --weights random, with which accuracy means nothing.",
    )


def load_file(module: nn.Module, path: Path) -> None:
    """Load the weights in the file `path` into `module`. Every key must fit.

    Raises:
        SourceError: the file is not a plain state dict, or keys or shapes differ; the message names the first of each.
    """
    state = read_state_dict(path)
    expected = module.state_dict()
    check_fit(
        path,
        missing=[k for k in expected if k not in state],
        unexpected=[k for k in state if k not in expected],
        shapes=[
            (k, v.shape, expected[k].shape) for k, v in state.items() if k in expected and v.shape != expected[k].shape
        ],
    )
    for name, value in state.items():
        if value.is_complex() != expected[name].is_complex():  # PyTorch would drop the imaginary part
            raise SourceError(
                f"{path} does not fit the model: {name!r} is {value.dtype} instead of {expected[name].dtype}",
                fix="Give weights of this model.",
            )
    module.load_state_dict(state)


def check_fit(
    path: Path, *, missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[tuple[str, Any, Any]]
) -> None:
    """Raise an error if a key or a shape does not fit.

    Args:
        path: the weights file.
        missing: keys that only the model has.
        unexpected: keys that only the file has.
        shapes: for each mismatch the key, its shape in the file, and its shape in the model.
    """
    problems = [
        f"{len(keys)} {kind}, first {keys[0]!r}"
        for kind, keys in (("missing keys", missing), ("unexpected keys", unexpected))
        if keys
    ]
    if shapes:
        key, shape, expected = shapes[0]
        problems.append(f"{len(shapes)} keys of another shape, first {key!r} {list(shape)} instead of {list(expected)}")
    if problems:
        raise SourceError(f"{path} does not fit the model: {'; '.join(problems)}", fix="Give weights of this model.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors by name from a `.safetensors`, `.pt` or `.pth` file. Nothing but tensors is unpickled.

    Raises:
        SourceError: the file is damaged or holds more than a plain state dict.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors

            return dict(load_safetensors(path))
        if zipfile.is_zipfile(path):
            refuse_packed(path, torch._C.PyTorchFileReader(str(path)))
            refuse_damaged(path)
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, struct and safetensors have errors of their own
        raise _not_a_state_dict(path, _describe(error)) from error
    for _ in range(_MAX_NESTING):  # a dict in a pickle may contain itself
        if isinstance(content, dict):
            content = next((content[key] for key in _NESTED if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content:
        raise _not_a_state_dict(path, f"it holds a {type(content).__name__}")
    other = next((k for k, v in content.items() if not isinstance(k, str) or not isinstance(v, torch.Tensor)), None)
    if other is not None:
        raise _not_a_state_dict(path, f"its entry {other!r} is a {type(content[other]).__name__}, not a tensor")
    odd = next((k for k, v in content.items() if v.layout is not torch.strided or v.is_meta or v.is_quantized), None)
    if odd is not None:
        raise _not_a_state_dict(path, f"its entry {odd!r} is not a dense tensor with values")
    return content


def refuse_packed(path: Path, reader: Any) -> None:
    """Refuse an archive that is larger once unpacked. PyTorch packs nothing, so a small file could fill the memory.

    Raises:
        ValueError: its members together have more bytes than the file.
    """
    size = sum(record_size(reader, name) for name in reader.get_all_records())
    if size > path.stat().st_size:
        raise ValueError(f"its members have {size:,} bytes, more than the file")


def record_size(reader: Any, name: str) -> int:
    """Return the bytes of a member in PyTorch's reader of archives. Older versions only tell by reading it."""
    return int(reader.get_record_size(name)) if hasattr(reader, "get_record_size") else len(reader.get_record(name))


def make_loaded_model(
    module: nn.Module,
    *,
    weights: WeightsOrigin,
    preprocess: Preprocess,
    labels: tuple[str, ...] | None,
    input_name: str = "input",
    task: TaskSpec | None = None,
    processor: OwnProcessor | None = None,
    no_processor: str = "",
) -> LoadedModel:
    """Put `module` into eval mode and float32 without gradients, and return it with its digests."""
    module = module.cpu().eval().float().requires_grad_(requires_grad=False)
    return LoadedModel(
        weights=weights,
        digest=weights_digest(module),
        parameters=sum(p.numel() for p in module.parameters()),
        preprocess=preprocess,
        labels=labels,
        input_name=input_name,
        task=task,
        module=module,
        code_digest=code_digest(module),
        processor=processor,
        no_processor=no_processor,
    )


def weights_digest(module: nn.Module) -> str:
    """Return the sha256 of name, dtype, shape and bytes of every parameter and buffer, in state-dict order.

    Buffers that are not part of the state dict (`persistent=False`) come after it.
    """
    import torch

    tensors = dict(module.state_dict())
    tensors.update({name: b for name, b in module.named_buffers(remove_duplicate=False) if name not in tensors})
    sha = hashlib.sha256()
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):  # the "extra state" of a module may be anything
            continue
        sha.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8)
        sha.update(raw.numpy().data)
    return sha.hexdigest()


def refuse_kwargs(spec: ModelSpec, names: Mapping[str, str]) -> None:
    """Raise an error if `spec.kwargs` has one of `names`; each value says what to do instead."""
    for name in spec.kwargs:
        if name in names:
            raise SourceError(f"{spec.spec}: kwargs must not set {name!r}", fix=names[name])


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    match = re.search(r"Unsupported (?:global|class|operand)[^.]*?([\w.]+\.[\w.]+)|GLOBAL ([\w.]+)", text)
    if match:
        return f"it needs {(match[1] or match[2]).rstrip('.')}, which is not a tensor"
    return text[:200]


def _not_a_state_dict(path: Path, reason: str) -> SourceError:
    return SourceError(
        f"{path} is not a plain state dict: {reason}", fix="Save model.state_dict() with safetensors.torch.save_file."
    )
