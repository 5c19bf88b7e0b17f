"""The benchmark's ViTs as Hugging Face folders, the one form that every tool of the comparison reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from vitdeploy import sources
from vitdeploy.recipe import ModelSpec

TOLERANCE = 1e-4
"""The largest difference between the logits of the timm model and of its copy, which are of order 10."""
DEIT_TINY: Mapping[str, int] = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
VIT_BASE: Mapping[str, int] = {}  # transformers' defaults


def save_random(folder: Path, sizes: Mapping[str, int]) -> None:
    """Save a ViT for 1,000 classes and 224 x 224 pixels with the weights of `vitdeploy --weights random`."""
    settings: dict[str, Any] = {"num_labels": 1000, "architectures": [ViTForImageClassification.__name__], **sizes}
    ViTConfig(**settings).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    model: Any = sources.load(ModelSpec(spec=f"hf:{folder}", weights="random")).module
    model.save_pretrained(folder)


def save_copy(folder: Path, model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Save a timm `VisionTransformer` with its weights as a model of transformers.

    Raises:
        ValueError: the copy computes something else.
    """
    block, patch = model.blocks[0], model.patch_embed
    height, width = patch.img_size
    settings: dict[str, Any] = {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "image_size": height,
        "patch_size": patch.patch_size[0],
        "num_channels": patch.proj.in_channels,
        "num_labels": model.num_classes,
        "layer_norm_eps": block.norm1.eps,
    }
    config = ViTConfig(**settings)
    copy = ViTForImageClassification(config).eval()
    copy.load_state_dict(_rename_state(model))
    image = torch.rand(4, config.num_channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = float((copy(image).logits - model.eval()(image)).abs().max())
    if not difference < TOLERANCE:
        raise ValueError(f"the copy's logits differ from the model's by {difference:.3g}")
    copy.save_pretrained(folder)
    size = {"height": height, "width": width}
    ViTImageProcessor(size=size, image_mean=mean, image_std=std).save_pretrained(folder)


def _rename_state(model: nn.Module) -> dict[str, Tensor]:
    """Return timm's state under transformers' names, with the packed projection split into q, k and v."""
    stems = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    stems_in_block = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name in stems:
            state[stems[name]] = value
            continue
        stem, _, kind = name.rpartition(".")
        if not stem.startswith("blocks."):
            state[f"{stems[stem]}.{kind}"] = value
            continue
        _, number, part = stem.split(".", 2)
        layer = f"vit.layers.{number}"
        if part == "attn.qkv":
            for letter, piece in zip("qkv", value.chunk(3), strict=True):
                state[f"{layer}.attention.{letter}_proj.{kind}"] = piece
        else:
            state[f"{layer}.{stems_in_block[part]}.{kind}"] = value
    return state
