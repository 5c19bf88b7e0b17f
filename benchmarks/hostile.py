"""Twins of a trained ViT that compute the same function in float32, but are hostile to a number format.

    vitdeploy export python:benchmarks.hostile:digits_int8 …

The changes to the trained weights imitate what training does to large models: a few channels of a LayerNorm carry most
of the range (Dettmers et al., LLM.int8(), 2022), and the residual stream grows from block to block.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from vitdeploy import sources
from vitdeploy.recipe import ModelSpec

OUTLIER_CHANNELS = 4
OUTLIER_GAINS = (50.0, 100.0)
STREAM_GAIN = 1000.0

VitT = TypeVar("VitT")
"""A timm `VisionTransformer`."""


def add_outlier_channels(model: VitT, seed: int = 0) -> VitT:
    """Make a few channels of every LayerNorm 50 to 100 times as large, and divide them again in the linear behind it.

    One scale for a whole activation then leaves two or three of the 256 steps to the other channels. Changes the
    timm `VisionTransformer` in place.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs: list[tuple[nn.LayerNorm, nn.Linear]] = []
    vit: Any = model
    for block in vit.blocks:
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


def enlarge_stream(model: VitT, gain: float = STREAM_GAIN) -> VitT:
    """Multiply everything that is written to the residual stream by `gain`; the norms take it out again.

    With a gain of 1,000, a LayerNorm made of single operators squares numbers beyond float16's 65,504. From a gain of
    about 100,000 on, the stream itself is beyond it. Changes the timm `VisionTransformer` in place.
    """
    vit: Any = model
    with torch.no_grad():
        for parameter in (vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, vit.cls_token, vit.pos_embed):
            parameter *= gain
        for block in vit.blocks:
            for linear in (block.attn.proj, block.mlp.fc2):
                linear.weight *= gain
                linear.bias *= gain
        norms = [m for m in vit.modules() if isinstance(m, nn.LayerNorm)]
        for norm in norms:
            norm.eps *= gain**2  # so that not even the epsilon makes a difference
    return model


def digits() -> Any:
    """Return the model of `demo:digits`, for `python:`."""
    loaded = sources.load(ModelSpec(spec="demo:digits"), size=None)
    model: Any = loaded.module
    model.vitdeploy_preprocess = loaded.preprocess.model_dump()
    model.vitdeploy_labels = list(loaded.labels or ())
    return model


def digits_int8() -> Any:
    """Return the digits model, hostile to INT8."""
    return add_outlier_channels(digits())


def digits_fp16(gain: float = STREAM_GAIN) -> Any:
    """Return the digits model, hostile to FP16."""
    return enlarge_stream(digits(), gain)
