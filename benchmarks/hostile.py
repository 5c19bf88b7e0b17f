"""Twins of a trained ViT: the same float32 function, hostile to a number format.

    vitdeploy export python:benchmarks.hostile:digits_int8 …

What they do to the trained weights is what training does to large models by itself: a few channels of a LayerNorm that
carry most of the range (Dettmers et al., LLM.int8(), 2022), and a residual stream that grows from block to block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vitdeploy import sources
from vitdeploy.recipe import ModelSpec

OUTLIER_CHANNELS = 4
OUTLIER_GAINS = (50.0, 100.0)
STREAM_GAIN = 1000.0


def with_outlier_channels(model: Any, seed: int = 0) -> Any:
    """Every LayerNorm gives a few channels 50 to 100 times as large; the linear behind it divides them again.

    One scale for a whole activation then leaves the other channels two or three of the 256 steps. Changes the timm
    `VisionTransformer` in place.
    """
    generator = torch.Generator().manual_seed(seed)
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


def with_large_stream(model: Any, gain: float = STREAM_GAIN) -> Any:
    """Everything written to the residual stream is `gain` times as large; the norms take it out again.

    At 1,000 a decomposed LayerNorm squares beyond float16's 65,504; from some 100,000 on the stream itself is beyond.
    Changes the timm `VisionTransformer` in place.
    """
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


def digits() -> Any:
    """The model of `demo:digits`, for `python:`."""
    loaded = sources.load(ModelSpec(spec="demo:digits"), size=None)
    loaded.module.vitdeploy_preprocess = loaded.preprocess.model_dump()
    loaded.module.vitdeploy_labels = list(loaded.labels or ())
    return loaded.module


def digits_int8() -> Any:
    """The digits model, hostile to INT8."""
    return with_outlier_channels(digits())


def digits_fp16(gain: float = STREAM_GAIN) -> Any:
    """The digits model, hostile to FP16."""
    return with_large_stream(digits(), gain)
