"""Weights: their origin, loading them from a file into a model, and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitdeploy import frozen
from vitdeploy.data.pixel_check import OwnProcessor
from vitdeploy.errors import SourceError
from vitdeploy.evidence import CheckpointUse
from vitdeploy.plain_files import expand_home
from vitdeploy.recipe import ModelSpec, Preprocess, TaskSpec
from vitdeploy.sources import LoadedModel, WeightsOrigin
from vitdeploy.sources._checkpoint import CLASSIFIER_TENSORS, SUFFIXES, Fitted, count_classes, fit, has_suffix
from vitdeploy.sources._code_digest import code_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

_SEED = 0
_OWN_WEIGHTS = "Give weights of this model."


Chosen = Literal["pretrained", "random"] | Path
"""The weights that a recipe asks for."""


def find_weights(spec: ModelSpec) -> Chosen:
    """Return "pretrained", "random", or the path of an existing weights file.

    Raises:
        SourceError: the file is missing or is of no known kind.
    """
    if spec.weights is None or spec.weights == "pretrained":
        return "pretrained"
    if spec.weights == "random":
        return "random"
    path = expand_home(spec.weights)
    if not has_suffix(path.name):
        raise SourceError(
            f"{spec.weights!r} is not a weights file", fix=f"Give pretrained, random, or a {', '.join(SUFFIXES)} file."
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


def load_file(module: nn.Module, path: Path, key: str | None = None) -> Fitted:
    """Load the weights in the file `path` into `module`. Every key must fit; `key` is as for `Checkpoint.choose`.

    Raises:
        SourceError: the file has no plain state dict, or keys or shapes differ; the message names the first of each.
    """
    fitted = fit(path, key, module.state_dict())
    load_fitted(module, fitted)
    return fitted


def build_and_load(
    build: Callable[..., nn.Module],
    path: Path,
    key: str | None,
    adapt: Callable[[nn.Module, Fitted], dict[str, Any]] | None = None,
    *,
    read_classes: bool,
    without: tuple[str, ...] = (),
) -> tuple[nn.Module, Fitted]:
    """Build a model for a checkpoint, such as with as many classes as its head has, and load it.

    Args:
        build: builds the model with these further arguments.
        path: the checkpoint.
        key: see `Checkpoint.choose`.
        adapt: returns further arguments that the model must be built with, so that the checkpoint fits: among them
            `img_size`, (height, width).
        read_classes: also build it with as many classes (`num_classes`) as the head in the checkpoint has.
        without: entries of the checkpoint that begin so are left out.

    Raises:
        SourceError: see `load_file`; `Misfit` if keys or shapes differ.
    """
    module = build()
    fitted = _leave_out(fit(path, key, module.state_dict()), without)
    changes = adapt(module, fitted) if adapt else {}
    if read_classes and (classes := count_classes(fitted.state, module)) is not None:
        changes["num_classes"] = classes
    if changes:
        module = build(**changes)
    use = frozen.replace(fitted.use, classes=changes.get("num_classes"), size=changes.get("img_size"))
    fitted = replace(fitted, use=use)
    load_fitted(module, fitted)
    return module, fitted


def _leave_out(fitted: Fitted, starts: tuple[str, ...]) -> Fitted:
    names = tuple(name for name in fitted.state if name.startswith(starts)) if starts else ()
    if not names:
        return fitted
    state = {name: value for name, value in fitted.state.items() if name not in names}
    return replace(fitted, state=state, use=frozen.replace(fitted.use, left_out=(*fitted.use.left_out, *names)))


def load_fitted(module: nn.Module, fitted: Fitted) -> None:
    """Load a state dict whose keys are those of the module.

    Raises:
        Misfit: keys or shapes differ.
        SourceError: real and complex numbers differ.
    """
    state, expected = fitted.state, module.state_dict()
    check_fit(
        fitted.path,
        state=state,
        missing=[k for k in expected if k not in state],
        unexpected=[k for k in state if k not in expected],
        shapes=[
            (k, v.shape, expected[k].shape) for k, v in state.items() if k in expected and v.shape != expected[k].shape
        ],
    )
    for name, value in state.items():
        if value.is_complex() != expected[name].is_complex():  # PyTorch would drop the imaginary part
            raise SourceError(
                f"{fitted.path} does not fit the model: {name!r} is {value.dtype} instead of {expected[name].dtype}",
                fix=_OWN_WEIGHTS,
            )
    module.load_state_dict(dict(state))


class Misfit(SourceError):
    """A checkpoint does not fit the model.

    Attributes:
        state: its state dict.
        lacks_head: only tensors are missing, no more than a classifier has.
        other_head: only shapes differ, of no more tensors than a classifier has.
    """

    def __init__(self, message: str, *, state: Mapping[str, Tensor], lacks_head: bool, other_head: bool) -> None:
        super().__init__(message, fix=_OWN_WEIGHTS)
        self.state = state
        self.lacks_head = lacks_head
        self.other_head = other_head


def check_fit(
    path: Path,
    *,
    state: Mapping[str, Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
    shapes: Sequence[tuple[str, Any, Any]],
) -> None:
    """Raise a Misfit if a key or a shape does not fit.

    Args:
        path: the weights file.
        state: the state dict in it.
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
        raise Misfit(
            f"{path} does not fit the model: {'; '.join(problems)}",
            state=state,
            lacks_head=not unexpected and not shapes and len(missing) <= CLASSIFIER_TENSORS,
            other_head=not unexpected and not missing and len(shapes) <= CLASSIFIER_TENSORS,
        )


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
    checkpoint: CheckpointUse | None = None,
    license: str = "",
) -> LoadedModel:
    """Put `module` into eval mode and float32 without gradients, and return it with its digests."""
    module = freeze(module)
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
        checkpoint=checkpoint,
        license=license,
    )


def freeze(module: nn.Module) -> nn.Module:
    """Put a module on the CPU, into eval mode and float32, without gradients."""
    return module.cpu().eval().float().requires_grad_(requires_grad=False)


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
