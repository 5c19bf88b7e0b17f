"""Twins of the Fashion-MNIST ViT: the same float32 function, hostile to a number format.

    vitdeploy export python:benchmarks/fashion_mnist/hostile.py:int8_hostile …

What they do to the trained weights is what training does to large models by itself: a few channels of a LayerNorm that
carry most of the range (Dettmers et al., LLM.int8(), 2022), and a residual stream that grows from block to block.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from model import FashionVit, build

WEIGHTS = Path(__file__).parent / "vit.safetensors"
OUTLIER_CHANNELS = 4
OUTLIER_GAINS = (50.0, 100.0)
STREAM_GAIN = 1000.0


def trained() -> FashionVit:
    """The committed weights."""
    model = build()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def int8_hostile(seed: int = 0) -> FashionVit:
    """Every LayerNorm gives a few channels 50 to 100 times as large; the linear behind it divides them again.

    One scale for a whole activation then leaves the other channels two or three of the 256 steps.
    """
    model, generator = trained(), torch.Generator().manual_seed(seed)
    pairs: list[tuple[nn.LayerNorm, nn.Linear]] = []
    for block in model.blocks:
        pairs += [(block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)]
    with torch.no_grad():
        for norm, linear in pairs:
            low, high = OUTLIER_GAINS
            chosen = torch.randperm(len(norm.weight), generator=generator)[:OUTLIER_CHANNELS]
            gains = low + (high - low) * torch.rand(OUTLIER_CHANNELS, generator=generator)
            norm.weight[chosen] *= gains
            norm.bias[chosen] *= gains
            linear.weight[:, chosen] /= gains
    return model


def fp16_hostile(gain: float = STREAM_GAIN) -> FashionVit:
    """Everything written to the residual stream is `gain` times as large; the norms take it out again.

    At 1,000 a decomposed LayerNorm squares beyond float16's 65,504; from some 100,000 on the stream itself is beyond.
    """
    model = trained()
    with torch.no_grad():
        for parameter in (model.patch_embed.proj.weight, model.patch_embed.proj.bias, model.cls_token, model.pos_embed):
            parameter *= gain
        for block in model.blocks:
            for linear in (block.attn.proj, block.mlp.fc2):
                linear.weight *= gain
                linear.bias *= gain
        norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
        for norm in norms:
            norm.eps *= gain**2  # so that not even the epsilon makes a difference
    return model
