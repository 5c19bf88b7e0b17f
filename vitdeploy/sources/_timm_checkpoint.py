"""Checkpoints of timm's models: the classes, the channels and the image size that they were built for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy import frozen
from vitdeploy.errors import SourceError
from vitdeploy.sources import _image, _weights
from vitdeploy.sources._architectures import timm_classifiers
from vitdeploy.sources._checkpoint import Fitted

if TYPE_CHECKING:
    from torch import Tensor, nn

_POSITIONS = "pos_embed"


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
        others = set(fitted.state) ^ set(expected)
        if not all(each.startswith(timm_classifiers(name)) for each in others):
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

    unwanted = timm_classifiers(name) if given.get("num_classes") == 0 else ()
    module, fitted = _weights.build_and_load(
        build, path, key, adapt, read_classes="num_classes" not in given, without=unwanted
    )
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
