"""The benchmark's ViTs as Hugging Face folders, the one form that every tool of the comparison reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from vitdeploy import sources
from vitdeploy.recipe import ModelSpec

tf: Any = transformers  # its types are not known before a class is loaded

TOLERANCE = 1e-4
"""The largest difference between the logits of the timm model and of its copy, which are of order 10."""


@dataclass(frozen=True)
class Random:
    """A model of transformers that gets random weights.

    Attributes:
        model: its class.
        config: its configuration.
        processor: what makes its images.
    """

    model: type[Any]
    config: Any
    processor: Any


def _make_vit(width: int, heads: int) -> Random:
    config = tf.ViTConfig(num_labels=1000, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width)
    return Random(tf.ViTForImageClassification, config, ViTImageProcessor())


def _square(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


_DINOV2_SMALL: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
DEIT_TINY = _make_vit(192, 3)
DEIT_SMALL = _make_vit(384, 6)
VIT_BASE = _make_vit(768, 12)
SWIN_TINY = Random(tf.SwinForImageClassification, tf.SwinConfig(num_labels=1000), ViTImageProcessor())
DINOV2_SMALL = Random(
    tf.Dinov2ForImageClassification,
    tf.Dinov2Config(num_labels=1000, **_DINOV2_SMALL),
    ViTImageProcessor(size=_square(518)),
)
SEGFORMER_B0 = Random(
    tf.SegformerForSemanticSegmentation,
    tf.SegformerConfig(num_labels=150),
    tf.SegformerImageProcessor(size=_square(512)),
)
DEPTH_SMALL = Random(
    tf.DepthAnythingForDepthEstimation,
    tf.DepthAnythingConfig(
        backbone_config=tf.Dinov2Config(
            **_DINOV2_SMALL, reshape_hidden_states=False, apply_layernorm=True, out_indices=[3, 6, 9, 12]
        ),
        reassemble_hidden_size=384, neck_hidden_sizes=[48, 96, 192, 384], fusion_hidden_size=64,
    ),
    tf.DPTImageProcessor(size=_square(518)),
)  # fmt: skip
RF_DETR_NANO = Random(
    tf.RfDetrForObjectDetection,
    tf.RfDetrConfig(
        backbone_config=tf.RfDetrDinov2Config(
            hidden_size=384, num_attention_heads=6, image_size=384, patch_size=16, num_windows=2,
            out_indices=[3, 6, 9, 12],
        ),
        decoder_layers=2, num_labels=91,
    ),
    tf.DeformableDetrImageProcessor(size=_square(384), do_pad=False),
)  # fmt: skip


def save_random(folder: Path, kind: Random) -> None:
    """Save a model with the weights of `vitdeploy --weights random`."""
    kind.config.architectures = [kind.model.__name__]
    kind.config.save_pretrained(folder)
    kind.processor.save_pretrained(folder)
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
