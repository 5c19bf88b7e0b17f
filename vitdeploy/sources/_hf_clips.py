"""Models of transformers that take clips: (batch, frames, channels, height, width)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitdeploy.recipe import Preprocess

if TYPE_CHECKING:
    from torch import nn

_FRAMES = ("num_frames", "frames_per_clip")


def count_frames(config: Any) -> int | None:
    """Return the number of frames in a model's config; None if it has none."""
    counts = (getattr(config, name, None) for name in _FRAMES)
    return next((count for count in counts if isinstance(count, int) and count > 0), None)


def takes_clips(module: nn.Module, preprocess: Preprocess) -> bool:
    """Run a clip through a model. A config with frames does not say that this class of the family takes them.

    A model that fails on a clip and on an image too is one of clips: its error then is about a clip.
    """
    return _runs(module, preprocess.sample_shape) or not _runs(module, preprocess.sample_shape[1:])


def _runs(module: nn.Module, shape: tuple[int, ...]) -> bool:
    import torch

    try:
        with torch.inference_mode():
            module.eval().float()(torch.zeros(1, *shape))
    except Exception:  # noqa: BLE001  `_check_size` reports it
        return False
    return True
