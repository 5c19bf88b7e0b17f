"""The benchmark's ViTs as Hugging Face folders: the one form that every tool of the comparison reads."""

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
"""Between the logits of the timm model and of its copy, of order 10."""
DEIT_TINY: Mapping[str, int] = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
VIT_BASE: Mapping[str, int] = {}  # transformers' defaults


def fresh(folder: Path, sizes: Mapping[str, int]) -> None:
    """A ViT for 1,000 classes and 224 x 224 pixels with the weights that vitdeploy makes for `--weights random`."""
    kind = ViTForImageClassification
    ViTConfig(**sizes, num_labels=1000, architectures=[kind.__name__]).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    model: Any = sources.load(ModelSpec(spec=f"hf:{folder}", weights="random")).module
    model.save_pretrained(folder)


def copied(folder: Path, model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """The timm `VisionTransformer` with its weights.

    Raises:
        ValueError: the copy computes something else.
    """
    block, patch = model.blocks[0], model.patch_embed
    height, width = patch.img_size
    config = ViTConfig(
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        image_size=height,
        patch_size=patch.patch_size[0],
        num_channels=patch.proj.in_channels,
        num_labels=model.num_classes,
        layer_norm_eps=block.norm1.eps,
    )
    copy = ViTForImageClassification(config).eval()
    copy.load_state_dict(_renamed(model))
    image = torch.rand(4, config.num_channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        apart = float((copy(image).logits - model.eval()(image)).abs().max())
    if not apart < TOLERANCE:
        raise ValueError(f"the copy's logits are {apart:.3g} from the model's")
    copy.save_pretrained(folder)
    size = {"height": height, "width": width}
    ViTImageProcessor(size=size, image_mean=mean, image_std=std).save_pretrained(folder)


def _renamed(model: nn.Module) -> dict[str, Tensor]:
    """timm's state under transformers' names, the packed projection in three."""
    stems = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    inside = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name in stems:
            found[stems[name]] = value
            continue
        stem, _, kind = name.rpartition(".")
        if not stem.startswith("blocks."):
            found[f"{stems[stem]}.{kind}"] = value
            continue
        _, number, part = stem.split(".", 2)
        layer = f"vit.layers.{number}"
        if part == "attn.qkv":
            for letter, piece in zip("qkv", value.chunk(3), strict=True):
                found[f"{layer}.attention.{letter}_proj.{kind}"] = piece
        else:
            found[f"{layer}.{inside[part]}.{kind}"] = value
    return found
