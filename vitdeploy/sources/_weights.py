"""Weights: where they come from, how a file of them is read without running code, and the digest over them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec, Preprocess, TaskSpec
from vitdeploy.sources import LoadedModel, WeightsOrigin
from vitdeploy.sources._code_digest import code_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

_SEED = 0
_NESTED = ("state_dict", "model")  # where training scripts put the state dict inside a checkpoint
_SUFFIXES = (".safetensors", ".pt", ".pth")


def chosen(spec: ModelSpec) -> Literal["pretrained", "random"] | Path:
    """What `spec.weights` asks for; a path is checked to exist.

    Raises:
        SourceError: the file is missing or is of no known kind.
    """
    if spec.weights is None or spec.weights == "pretrained":
        return "pretrained"
    if spec.weights == "random":
        return "random"
    path = Path(spec.weights).expanduser()
    if path.suffix not in _SUFFIXES:
        raise SourceError(
            f"{spec.weights!r} is no weights file", fix=f"Give pretrained, random, or a {', '.join(_SUFFIXES)} file."
        )
    if not path.is_file():
        raise SourceError(f"there is no weights file {path}", fix="Check the path.")
    return path


@contextmanager
def seeded() -> Iterator[None]:
    """Everything that is initialised inside comes out the same each time; the caller's generator is left alone."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


def unavailable(model: str, reason: object) -> SourceError:
    """No pretrained weights: never replaced by random ones without being asked."""
    text = " ".join(str(reason).split())[:300]
    return SourceError(
        f"the pretrained weights of {model} cannot be had: {text}",
        fix="Give a file with --weights FILE, or go on without accuracy with --weights random.",
    )


def load_file(module: nn.Module, path: Path) -> None:
    """Fill `module` with the weights in `path`: every key has to fit.

    Raises:
        SourceError: the file is no plain state dict, or keys or shapes differ; the message names the first of each.
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
    module.load_state_dict(state)


def check_fit(
    path: Path, *, missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[tuple[str, Any, Any]]
) -> None:
    """Raise when anything does not fit; `shapes` are (key, shape in the file, shape in the model)."""
    problems = [
        f"{len(keys)} {what}, first {keys[0]!r}"
        for what, keys in (("missing keys", missing), ("unexpected keys", unexpected))
        if keys
    ]
    if shapes:
        key, given, expected = shapes[0]
        problems.append(f"{len(shapes)} keys of another shape, first {key!r} {list(given)} instead of {list(expected)}")
    if problems:
        raise SourceError(
            f"{path} does not fit the model: {'; '.join(problems)}", fix="Give weights of this very model."
        )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a `.safetensors`, `.pt` or `.pth` file. Nothing but tensors is unpickled.

    Raises:
        SourceError: the file is damaged or holds more than a plain state dict.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors

            return dict(load_safetensors(path))
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, struct and safetensors errors alike: the file is not what it should be
        raise _refused(path, _reason(error)) from error
    while isinstance(content, dict) and any(isinstance(content.get(key), dict) for key in _NESTED):
        content = next(content[key] for key in _NESTED if isinstance(content.get(key), dict))
    if not isinstance(content, dict) or not content:
        raise _refused(path, f"it holds a {type(content).__name__}, not a state dict")
    stranger = next((k for k, v in content.items() if not isinstance(k, str) or not isinstance(v, torch.Tensor)), None)
    if stranger is not None:
        raise _refused(path, f"its entry {stranger!r} is a {type(content[stranger]).__name__}, not a tensor")
    return content


def finished(
    module: nn.Module,
    *,
    weights: WeightsOrigin,
    preprocess: Preprocess,
    labels: tuple[str, ...] | None,
    input_name: str = "input",
    task: TaskSpec | None = None,
) -> LoadedModel:
    """`module` in eval mode, float32 and without gradients, with its digest."""
    module = module.cpu().eval().float().requires_grad_(requires_grad=False)
    return LoadedModel(
        weights=weights,
        digest=digest(module),
        parameters=sum(p.numel() for p in module.parameters()),
        preprocess=preprocess,
        labels=labels,
        input_name=input_name,
        task=task,
        module=module,
        code_digest=code_digest(module),
    )


def digest(module: nn.Module) -> str:
    """sha256 over name, dtype, shape and bytes of every parameter and buffer, in the order of the state dict.

    Buffers that are not part of the state dict (`persistent=False`) follow it.
    """
    import torch

    tensors = dict(module.state_dict())
    tensors.update({name: b for name, b in module.named_buffers(remove_duplicate=False) if name not in tensors})
    sha = hashlib.sha256()
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):  # an "extra state" of the module's own kind
            continue
        sha.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8)
        sha.update(raw.numpy().data)
    return sha.hexdigest()


def refuse_kwargs(spec: ModelSpec, names: Mapping[str, str]) -> None:
    """Raise when `spec.kwargs` has one of `names`; each value says what to do instead."""
    for name in spec.kwargs:
        if name in names:
            raise SourceError(f"{spec.spec}: kwargs must not set {name!r}", fix=names[name])


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    asked = re.search(r"Unsupported (?:global|class|operand)[^.]*?([\w.]+\.[\w.]+)|GLOBAL ([\w.]+)", text)
    if asked:
        return f"it asks for {(asked[1] or asked[2]).rstrip('.')}, which is more than tensors"
    return text[:200]


def _refused(path: Path, reason: str) -> SourceError:
    return SourceError(
        f"{path} is not a plain state dict: {reason}", fix="Save model.state_dict() with safetensors.torch.save_file."
    )
