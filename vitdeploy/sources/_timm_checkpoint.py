"""Checkpoints of timm's models: what they were built with, and which model they fit if it is another one."""

from __future__ import annotations

import dataclasses
import difflib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy import frozen
from vitdeploy.errors import SourceError
from vitdeploy.sources import _image, _weights
from vitdeploy.sources._checkpoint import Fitted

if TYPE_CHECKING:
    from torch import Tensor, nn

_POSITIONS = "pos_embed"
_SEARCH_SECONDS = 20.0


def load_checkpoint(
    name: str,
    build: Callable[..., nn.Module],
    given: Mapping[str, Any],
    size: tuple[int, int] | None,
    path: Path,
    key: str | None,
) -> tuple[nn.Module, Fitted]:
    """Build the model for the classes, channels and image size of a checkpoint. Resample its positions to `size`.

    Args:
        name: the name in timm's model list.
        build: builds the model with further arguments: `img_size` (height, width), `in_chans`, `num_classes`.
        given: the arguments that the user gives; a checkpoint does not override them.
        size: the image size that the user gives.
        path: the checkpoint.
        key: see `Checkpoint.choose`.

    Raises:
        SourceError: the checkpoint does not fit, or the model cannot be changed to `size`.
    """

    def adapt(module: nn.Module, fitted: Fitted) -> dict[str, Any]:
        expected = module.state_dict()
        changes: dict[str, Any] = {}
        if set(fitted.state) != set(expected):
            return changes  # of another architecture
        channels = count_channels(module, fitted.state)
        if "in_chans" not in given and channels != count_channels(module, expected):
            changes["in_chans"] = channels
        have, want = (state.get(_POSITIONS) for state in (fitted.state, expected))
        if have is not None and want is not None and have.ndim == want.ndim == 3 and have.shape[1] != want.shape[1]:
            patches: Any = module.patch_embed
            tokens = want.shape[1] - math.prod(patches.grid_size)  # those that have a position beside the patches
            changes["img_size"] = _image.read_trained_size(path, have.shape[1] - tokens, patches.patch_size)
        return changes

    try:
        unwanted = _classifiers(name) if given.get("num_classes") == 0 else ()
        module, fitted = _weights.build_and_load(
            build, path, key, adapt, read_classes="num_classes" not in given, without=unwanted
        )
    except _weights.Misfit as misfit:
        only_head = all(each.startswith(_classifiers(name)) for each in misfit.names)
        nearest = None if only_head else _find_fitting(name, misfit.state)
        if nearest is None:
            raise
        raise SourceError(
            f"{misfit.message}: its keys and shapes are those of {nearest!r}", fix=f"Give timm:{nearest}."
        ) from None
    if size is None or fitted.use.size is None:
        return module, fitted
    if not hasattr(module, "set_input_size"):
        trained = "x".join(map(str, fitted.use.size))
        raise SourceError(
            f"{path} was trained on {trained}, and timm:{name} cannot be changed to another size",
            fix=f"Use --image-size {trained}.",
        )
    resize: Any = module.set_input_size
    resize(img_size=size)
    return module, dataclasses.replace(fitted, use=frozen.replace(fitted.use, resampled=True))


def count_channels(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Return the channels of the images that the first convolution in a state dict takes; None if it has no name."""
    config: Any = getattr(module, "pretrained_cfg", None)
    stem = state.get(f"{(config or {}).get('first_conv')}.weight")
    return None if stem is None or stem.ndim != 4 else int(stem.shape[1])


def _classifiers(name: str) -> tuple[str, ...]:
    """Return how the keys of a model's classifier begin."""
    import timm

    config = timm.get_pretrained_cfg(name.partition(".")[0])
    names: Any = config.classifier if config is not None else None
    return tuple(f"{each}." for each in ((names,) if isinstance(names, str) else names or ()))


def _find_fitting(name: str, state: Mapping[str, Tensor]) -> str | None:
    """Return the model of timm's list with the keys and shapes of a state dict, of those with similar names first.

    Its classifier and its position embedding may have other sizes. Models are built without memory, for some seconds.
    """
    import timm

    shapes = {key: value.shape for key, value in state.items()}
    deadline = time.monotonic() + _SEARCH_SECONDS
    for other in sorted(timm.list_models(), key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio()):
        expected = _list_shapes(other)
        free = (*_classifiers(other), _POSITIONS)
        if set(expected) == set(shapes) and all(
            shape == expected[key] or key.startswith(free) for key, shape in shapes.items()
        ):
            return str(other)
        if time.monotonic() > deadline:
            break
    return None


def _list_shapes(name: str) -> dict[str, Any]:
    """Return the shapes of a model's tensors, without making them; nothing if it cannot be built so."""
    import timm
    import torch

    try:
        with torch.device("meta"):
            return {key: value.shape for key, value in timm.create_model(name).state_dict().items()}
    except Exception:  # noqa: BLE001  constructors that compute with the values of tensors raise what they like
        return {}
