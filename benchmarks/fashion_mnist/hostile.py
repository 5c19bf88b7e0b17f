"""Twins of the Fashion-MNIST ViT that compute the same function in float32, but are hostile to a number format.

    vitdeploy export python:benchmarks/fashion_mnist/hostile.py:int8_hostile …

`benchmarks/hostile.py` makes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, which a path alone does not bring along
from benchmarks.fashion_mnist.model import FashionVit, build
from benchmarks.hostile import STREAM_GAIN, add_outlier_channels, enlarge_stream

WEIGHTS = Path(__file__).parent / "vit.safetensors"


def load_trained() -> FashionVit:
    """Return the model with the committed weights."""
    model = build()
    model.load_state_dict(load_file(WEIGHTS))
    model.eval()
    return model


def int8_hostile(seed: int = 0) -> FashionVit:
    """Return the twin that is hostile to INT8."""
    return add_outlier_channels(load_trained(), seed)


def fp16_hostile(gain: float = STREAM_GAIN) -> FashionVit:
    """Return the twin that is hostile to FP16."""
    return enlarge_stream(load_trained(), gain)
