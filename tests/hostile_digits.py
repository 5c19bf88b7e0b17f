"""The digits ViT with one block that is hostile to INT8, as a file for `python:FILE:FACTORY`."""

from __future__ import annotations

from typing import Any

import torch

BLOCK = 2
GAIN = 400.0
CHANNELS = 4


def build() -> Any:
    """The same float32 function: a few channels in front of one block's qkv and fc1 are far larger than the others."""
    from vitdeploy.recipe import ModelSpec
    from vitdeploy.sources import load

    model: Any = load(ModelSpec(spec="demo:digits"), size=None).module
    block = model.blocks[BLOCK]
    with torch.no_grad():
        for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            for tensor in (norm.weight, norm.bias):
                tensor[:CHANNELS] *= GAIN
            linear.weight[:, :CHANNELS] /= GAIN
    model.vitdeploy_preprocess = {  # on this model only: its class is timm's
        "size": [32, 32], "channels": 1, "mean": [0.5], "std": [0.5], "interpolation": "bicubic",
    }  # fmt: skip
    return model
