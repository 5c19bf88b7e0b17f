"""Small promptable models of each family, whose masks depend on the prompt although the weights are random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from benchmarks.zoo.entry import redraw

SIDE = 128
_TELLING = 20.0
"""The factor on the tokens of points, without which random weights hardly see them among the image's."""
_PROMPTS = {"hidden_size": 64, "image_size": SIDE, "patch_size": 16}
_MASKS = {
    "hidden_size": 64, "mlp_dim": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "iou_head_hidden_dim": 64,
}  # fmt: skip
_LEVELS: dict[str, Any] = {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]], "fpn_hidden_size": 64}


def build_sam() -> nn.Module:
    """Build SAM with two layers, one of them with windows."""
    vision = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 128, "image_size": SIDE,
        "patch_size": 16, "output_channels": 64, "global_attn_indexes": [1], "window_size": 4, "num_pos_feats": 32,
    }  # fmt: skip
    prompts = {**_PROMPTS, "image_embedding_size": 8}
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=_MASKS)
    return transformers.SamModel(config)


def build_sam2() -> nn.Module:
    """Build SAM 2 with a block or two in each stage of Hiera."""
    return transformers.Sam2Model(transformers.Sam2Config(**_configure_sam2()))


def build_sam2_video() -> nn.Module:
    """Build SAM 2 for videos: checkpoints on the hub name this class."""
    memory: dict[str, Any] = {
        "memory_attention_hidden_size": 64, "memory_attention_num_layers": 1, "memory_encoder_hidden_size": 64,
        "memory_attention_feed_forward_hidden_size": 64, "memory_attention_num_attention_heads": 1, "image_size": SIDE,
        "memory_encoder_output_channels": 16, "mask_downsampler_embed_dim": 64, "memory_fuser_embed_dim": 64,
        "memory_fuser_intermediate_dim": 64, "memory_attention_rope_feat_sizes": [8, 8],
    }  # fmt: skip
    return transformers.Sam2VideoModel(transformers.Sam2VideoConfig(**_configure_sam2(), **memory))


def build_edgetam() -> nn.Module:
    """Build EdgeTAM on RepViT, with a narrow decoder."""
    arguments = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    timm: Any = transformers.TimmWrapperConfig  # it has no types
    backbone = timm(architecture="repvit_m1", num_classes=2, model_args=arguments)
    vision = {"backbone_config": backbone, "backbone_channel_list": [384, 192, 96, 48], **_LEVELS}
    config = transformers.EdgeTamConfig(
        vision_config=vision, prompt_encoder_config=_PROMPTS, mask_decoder_config=_MASKS
    )
    return transformers.EdgeTamModel(config)


FAMILIES: dict[str, Callable[[], nn.Module]] = {"SAM": build_sam, "SAM 2": build_sam2, "EdgeTAM": build_edgetam}


def save(build: Callable[[], nn.Module], folder: Path) -> nn.Module:
    """Draw the weights of a model anew, save it with its image processor in `folder`, and return it."""
    torch.manual_seed(0)
    model: Any = redraw(build())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "point_embed" in name or "not_a_point" in name:
                parameter.mul_(_TELLING)
            if "mask_decoder" in name and name.endswith("bias"):
                parameter.mul_(0.1)  # large ones are the same for every prompt
            if "mask_decoder" in name and "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
        if build is build_edgetam:
            _calm_neck(model)
        shared = model.shared_image_embedding.positional_embedding  # one tensor in trained models
        model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(shared)
    model.save_pretrained(folder)
    sides = {"height": SIDE, "width": SIDE}
    if build is build_sam:
        processor: Any = transformers.SamImageProcessor(size={"longest_edge": SIDE}, pad_size=sides)
    else:
        processor = transformers.Sam2ImageProcessor(size=sides, mask_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    whole: nn.Module = model.eval()
    return whole


def _calm_neck(model: Any) -> None:
    """Scale what the neck makes of RepViT's maps to the size of 1: with redrawn weights it reaches thousands."""
    for conv in model.vision_encoder.neck.convs:
        sizes: list[float] = []
        hook = conv.register_forward_hook(lambda _, __, output, sizes=sizes: sizes.append(float(output.std())))
        model.vision_encoder(torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
        hook.remove()
        for parameter in conv.parameters():
            parameter.div_(max(sizes[0], 1.0))


def _configure_sam2() -> dict[str, Any]:
    widths = [32, 64, 128, 256]
    hiera = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 32, "num_attention_heads": 1, "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": widths, "num_attention_heads_per_stage": [1, 2, 4, 8],
        "global_attention_blocks": [3], "window_size_per_stage": [8, 8, 8, 8],
        "window_positional_embedding_background_size": [7, 7],
    }  # fmt: skip
    vision = {"backbone_config": hiera, "backbone_channel_list": widths[::-1], **_LEVELS}
    return {"vision_config": vision, "prompt_encoder_config": _PROMPTS, "mask_decoder_config": _MASKS}
