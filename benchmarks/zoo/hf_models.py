"""Hugging Face models of the zoo: encoders, and what predicts classes, depths or masks. Small configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers as hf
from torch import nn

from benchmarks.zoo.entry import Entry


class Tensors(nn.Module):
    """A Hugging Face model that returns a tuple of its tensors.

    Args:
        model: takes `pixel_values`.
        arguments: what it takes beside them.
    """

    def __init__(self, model: nn.Module, arguments: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.model, self.arguments = model, dict(arguments or {})

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return all tensors of the model's output."""
        result = self.model(pixel_values=image, **self.arguments).to_tuple()
        return tuple(value for value in result if isinstance(value, torch.Tensor))


def make_entry(
    kind: str,
    config: str,
    size: tuple[int, int],
    attention: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    others: tuple[int, str] = (0, ""),
    **kwargs: Any,
) -> Entry:
    """Return the entry of a transformers class.

    Args:
        kind: the class.
        config: the class of its configuration.
        size: height and width of the images.
        attention: the implementation of attention; None for the model's own choice.
        arguments: what `forward` takes beside the images.
        others: the number of softmaxes that are no attention, and the reason.
        kwargs: of the configuration.
    """

    def build() -> nn.Module:
        model = getattr(hf, kind)._from_config(getattr(hf, config)(**kwargs), attn_implementation=attention)
        return Tensors(model, arguments)

    return Entry(build, size, *others)


configs: Any = hf
"""transformers; its classes of configurations take more than their types say."""

SMALL: dict[str, Any] = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 384}
SHALLOW: dict[str, Any] = {**SMALL, "num_hidden_layers": 4}
_SHALLOW_DINO: dict[str, Any] = {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 4}
_SWIN: dict[str, Any] = {"embed_dim": 48, "depths": [2, 2, 2, 2], "num_heads": [2, 3, 6, 12]}

_ADDITIVE = "they weight one sum of all tokens, which is added to or multiplies each of them"

_ENCODERS = {
    "hf vit (eager)": make_entry("ViTForImageClassification", "ViTConfig", (224, 224), "eager", num_hidden_layers=4),
    "hf vit (sdpa)": make_entry("ViTForImageClassification", "ViTConfig", (224, 224), "sdpa", num_hidden_layers=4),
    "hf deit": make_entry("DeiTForImageClassification", "DeiTConfig", (224, 224), **SHALLOW),
    "hf beit": make_entry(
        "BeitForImageClassification", "BeitConfig", (224, 224), use_relative_position_bias=True,
        use_mask_token=False, **SHALLOW,
    ),
    "hf data2vec": make_entry(
        "Data2VecVisionForImageClassification", "Data2VecVisionConfig", (224, 224),
        use_shared_relative_position_bias=True, **SHALLOW,
    ),
    "hf dinov2": make_entry("Dinov2Model", "Dinov2Config", (224, 224), image_size=224, **_SHALLOW_DINO),
    "hf dinov2 registers": make_entry(
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", (224, 224), num_hidden_layers=4, hidden_size=384,
        num_attention_heads=6,
    ),
    "hf dinov3": make_entry("DINOv3ViTModel", "DINOv3ViTConfig", (224, 224), num_register_tokens=4, **SHALLOW),
    "hf ijepa": make_entry("IJepaModel", "IJepaConfig", (224, 224), **SHALLOW),
    "hf vit_msn": make_entry("ViTMSNForImageClassification", "ViTMSNConfig", (224, 224), **SHALLOW),
    "hf vit_mae (encoder)": make_entry("ViTMAEModel", "ViTMAEConfig", (224, 224), mask_ratio=0.0,
        arguments={"noise": torch.arange(196.0)[None]}, **SHALLOW,
   ),
    "hf vitdet": make_entry(
        "VitDetModel", "VitDetConfig", (256, 256), hidden_size=192, num_attention_heads=3, num_hidden_layers=4,
        image_size=256, pretrain_image_size=256, use_relative_position_embeddings=True, window_size=8,
        window_block_indices=[0, 2], residual_block_indices=[],
    ),
    "hf clip vision": make_entry("CLIPVisionModelWithProjection", "CLIPVisionConfig", (224, 224), num_hidden_layers=4),
    "hf siglip vision": make_entry("SiglipVisionModel", "SiglipVisionConfig", (224, 224), **SHALLOW),
    "hf owlv2 vision": make_entry("Owlv2VisionModel", "Owlv2VisionConfig", (256, 256), image_size=256, **SHALLOW),
    "hf aimv2 vision": make_entry("Aimv2VisionModel", "Aimv2VisionConfig", (224, 224), **SHALLOW),
    "hf blip vision": make_entry("BlipVisionModel", "BlipVisionConfig", (224, 224), image_size=224, **SHALLOW),
    "hf pvt": make_entry("PvtForImageClassification", "PvtConfig", (224, 224)),
    "hf pvt_v2": make_entry("PvtV2ForImageClassification", "PvtV2Config", (224, 224)),
    "hf cvt": make_entry(
        "CvtForImageClassification", "CvtConfig", (224, 224), depth=[1, 2, 4], embed_dim=[64, 96, 192]
    ),
    "hf levit": make_entry("LevitForImageClassification", "LevitConfig", (224, 224)),
    "hf mobilevit": make_entry("MobileViTForImageClassification", "MobileViTConfig", (256, 256)),
    "hf mobilevitv2": make_entry(
        "MobileViTV2ForImageClassification", "MobileViTV2Config", (256, 256), others=(9, _ADDITIVE),
        width_multiplier=0.5,
    ),
    "hf swin": make_entry("SwinForImageClassification", "SwinConfig", (224, 224)),
    "hf swinv2": make_entry(
        "Swinv2ForImageClassification", "Swinv2Config", (256, 256), image_size=256, window_size=8, **_SWIN
    ),
    "hf hiera": make_entry(
        "HieraForImageClassification", "HieraConfig", (224, 224), embed_dim=48, depths=[1, 2, 2, 1],
        num_heads=[1, 2, 4, 8],
    ),
    "hf swiftformer": make_entry(
        "SwiftFormerForImageClassification", "SwiftFormerConfig", (224, 224), others=(4, _ADDITIVE)
    ),
}  # fmt: skip

_DENSE = {
    "hf segformer": make_entry("SegformerForSemanticSegmentation", "SegformerConfig", (256, 256)),
    "hf glpn": make_entry("GLPNForDepthEstimation", "GLPNConfig", (256, 256)),
    "hf dpt": make_entry("DPTForDepthEstimation", "DPTConfig", (384, 384), **SMALL),
    "hf depth_anything": make_entry(
        "DepthAnythingForDepthEstimation", "DepthAnythingConfig", (224, 224),
        backbone_config=configs.Dinov2Config(
            image_size=224, patch_size=14, reshape_hidden_states=False, apply_layernorm=True,
            out_indices=[1, 2, 3, 4], **_SHALLOW_DINO,
        ),
        reassemble_hidden_size=192, neck_hidden_sizes=[24, 48, 96, 96], fusion_hidden_size=32, head_hidden_size=16,
    ),
    "hf zoedepth": make_entry(
        "ZoeDepthForDepthEstimation", "ZoeDepthConfig", (256, 256), others=(1, "it weights the bins of depth"),
        backbone_config=configs.BeitConfig(
            image_size=256, use_relative_position_bias=True, reshape_hidden_states=False, out_indices=[1, 2, 3, 4],
            use_mask_token=False, **SHALLOW,
        ),
        backbone_hidden_size=192, neck_hidden_sizes=[24, 48, 96, 96], fusion_hidden_size=64, bottleneck_features=64,
    ),
    "hf swin upernet": make_entry(
        "UperNetForSemanticSegmentation", "UperNetConfig", (224, 224), hidden_size=64,
        backbone_config=configs.SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"], **_SWIN),
        use_auxiliary_head=False,
    ),
    "hf swin2sr": make_entry(
        "Swin2SRForImageSuperResolution", "Swin2SRConfig", (64, 64), embed_dim=60, depths=[2, 2], num_heads=[6, 6],
    ),
    "hf vitpose": make_entry(
        "VitPoseForPoseEstimation", "VitPoseConfig", (256, 192),
        backbone_config=configs.VitPoseBackboneConfig(
            image_size=[256, 192], hidden_size=192, num_attention_heads=3, num_hidden_layers=4, out_indices=[4],
        ),
    ),
    "hf eomt": make_entry(
        "EomtForUniversalSegmentation", "EomtConfig", (224, 224), image_size=224, num_blocks=2, num_queries=20,
        **_SHALLOW_DINO,
    ),
    "hf sam vision": make_entry(
        "SamVisionModel", "SamVisionConfig", (256, 256), image_size=256, hidden_size=192, num_attention_heads=3,
        num_hidden_layers=4, global_attn_indexes=[1, 3], output_channels=64, window_size=7, mlp_dim=384,
    ),
    "hf sam2 vision": make_entry(
        "Sam2VisionModel", "Sam2VisionConfig", (256, 256),
        backbone_config=configs.Sam2HieraDetConfig(
            image_size=[256, 256], hidden_size=48, embed_dim_per_stage=[48, 96, 192, 384],
            num_attention_heads_per_stage=[1, 2, 4, 8], blocks_per_stage=[1, 2, 3, 1], global_attention_blocks=[4],
        ),
        backbone_channel_list=[384, 192, 96, 48], fpn_hidden_size=64,
        backbone_feature_sizes=[[64, 64], [32, 32], [16, 16]],
    ),
}  # fmt: skip
MODELS: dict[str, Entry] = {**_ENCODERS, **_DENSE}
