"""Models of transformers that take clips: (batch, frames, channels, height, width)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitdeploy.data.example_inputs import ExampleInputs
from vitdeploy.recipe import Preprocess

if TYPE_CHECKING:
    from torch import Tensor, nn

_FRAMES = ("num_frames", "frames_per_clip")


def count_frames(config: Any) -> int | None:
    """Return the number of frames in a model's config; None if it has none."""
    counts = (getattr(config, name, None) for name in _FRAMES)
    return next((count for count in counts if isinstance(count, int) and count > 0), None)


def takes_clips(module: nn.Module, preprocess: Preprocess, examples: ExampleInputs) -> bool:
    """Run a clip through a model. A config with frames does not say that this class of the family takes them.

    A model that fails on a clip and on an image too is one of clips: its error then is about a clip.
    """
    shape = preprocess.sample_shape
    return _runs(module, shape, examples) or not _runs(module, shape[1:], examples)


def run_example(module: nn.Module, images: Tensor, examples: ExampleInputs) -> Any:
    """Run a model on a batch of one, with the first example of each open input."""
    import torch

    if not examples:
        return module(images)
    others = {name: torch.from_numpy(value) for name, value in examples.take(1).items()}
    return module(**{str(module.input_name): images}, **others)


def _runs(module: nn.Module, shape: tuple[int, ...], examples: ExampleInputs) -> bool:
    import torch

    try:
        with torch.inference_mode():
            run_example(module.eval().float(), torch.zeros(1, *shape), examples)
    except Exception:  # noqa: BLE001  `_check_size` reports it
        return False
    return True
