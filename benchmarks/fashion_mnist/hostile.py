"""Twins of the Fashion-MNIST ViT: the same float32 function, hostile to a number format.

    vitdeploy export python:benchmarks/fashion_mnist/hostile.py:int8_hostile …

How they are made is in `benchmarks/hostile.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, which a path alone does not bring along
from benchmarks.fashion_mnist.model import FashionVit, build
from benchmarks.hostile import STREAM_GAIN, with_large_stream, with_outlier_channels

WEIGHTS = Path(__file__).parent / "vit.safetensors"


def trained() -> FashionVit:
    """The committed weights."""
    model = build()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def int8_hostile(seed: int = 0) -> FashionVit:
    """Hostile to INT8."""
    return with_outlier_channels(trained(), seed)


def fp16_hostile(gain: float = STREAM_GAIN) -> FashionVit:
    """Hostile to FP16."""
    return with_large_stream(trained(), gain)
