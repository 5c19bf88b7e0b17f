"""Hugging Face models of the zoo that give a set of boxes or masks: detectors, and segmenters with queries."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo.entry import Entry
from benchmarks.zoo.hf_models import SMALL, configs, make_entry

_SIZE = (256, 320)
_RESNET: dict[str, Any] = {
    "embedding_size": 32, "hidden_sizes": [32, 48, 64, 96], "depths": [1] * 4, "layer_type": "basic",
}  # fmt: skip
_LAST_STAGE: dict[str, Any] = {
    "backbone": None, "backbone_config": configs.ResNetConfig(**_RESNET, out_features=["stage4"]),
}  # fmt: skip
_THREE_STAGES: dict[str, Any] = {
    "backbone": None, "backbone_config": configs.ResNetConfig(**_RESNET, out_features=["stage2", "stage3", "stage4"]),
}  # fmt: skip
_DETR: dict[str, Any] = {
    "num_queries": 20, "d_model": 96, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 192,
    "decoder_ffn_dim": 192, "encoder_attention_heads": 3, "decoder_attention_heads": 3,
}  # fmt: skip
_RT: dict[str, Any] = {
    "backbone_config": configs.RTDetrResNetConfig(**_RESNET, out_features=["stage2", "stage3", "stage4"]),
    "encoder_in_channels": [48, 64, 96], "encoder_hidden_dim": 64, "encoder_ffn_dim": 128,
    "encoder_attention_heads": 4, "d_model": 64, "decoder_in_channels": [64, 64, 64], "decoder_ffn_dim": 128,
    "decoder_attention_heads": 4, "decoder_layers": 2, "num_queries": 20, "num_denoising": 0,
    "eval_size": None, "anchor_image_size": None,
}  # fmt: skip
_SAMPLED = "they weight the sampled points of deformable attention, which multiplies no matrices"
_BINS = f"two: {_SAMPLED}; three: they weight the bins that the place of an edge is chosen from"
_SWIN = configs.SwinConfig(
    embed_dim=48, depths=[2, 2, 2, 2], num_heads=[2, 3, 6, 12], out_features=["stage1", "stage2", "stage3", "stage4"]
)

MODELS: dict[str, Entry] = {
    "hf yolos": make_entry(
        "YolosForObjectDetection", "YolosConfig", _SIZE, num_hidden_layers=4, image_size=list(_SIZE),
        num_detection_tokens=20, **SMALL,
    ),
    "hf detr": make_entry("DetrForObjectDetection", "DetrConfig", _SIZE, **_LAST_STAGE, **_DETR),
    "hf table_transformer": make_entry(
        "TableTransformerForObjectDetection", "TableTransformerConfig", _SIZE, **_LAST_STAGE, **_DETR
    ),
    "hf conditional_detr": make_entry(
        "ConditionalDetrForObjectDetection", "ConditionalDetrConfig", _SIZE, **_LAST_STAGE, **_DETR
    ),
    "hf dab_detr": make_entry(
        "DabDetrForObjectDetection", "DabDetrConfig", _SIZE, **_LAST_STAGE,
        **{k: v for k, v in _DETR.items() if k != "d_model"}, hidden_size=96,
    ),
    "hf deformable_detr": make_entry(
        "DeformableDetrForObjectDetection", "DeformableDetrConfig", _SIZE, others=(3, _SAMPLED),
        num_feature_levels=3, **_THREE_STAGES, **_DETR,
    ),
    "hf deformable_detr, two stages": make_entry(
        "DeformableDetrForObjectDetection", "DeformableDetrConfig", _SIZE, others=(4, _SAMPLED),
        **_THREE_STAGES, **_DETR, num_feature_levels=3,
        two_stage=True, with_box_refine=True, two_stage_num_proposals=20,
    ),
    "hf rt_detr": make_entry("RTDetrForObjectDetection", "RTDetrConfig", _SIZE, others=(2, _SAMPLED), **_RT),
    "hf rt_detr_v2": make_entry("RTDetrV2ForObjectDetection", "RTDetrV2Config", _SIZE, others=(2, _SAMPLED), **_RT),
    "hf d_fine": make_entry(
        "DFineForObjectDetection", "DFineConfig", _SIZE, others=(5, _BINS), hidden_expansion=0.5, **_RT
    ),
    "hf lw_detr": make_entry(
        "LwDetrForObjectDetection", "LwDetrConfig", (256, 256), others=(2, _SAMPLED),
        backbone_config=configs.LwDetrViTConfig(
            hidden_size=96, num_attention_heads=3, num_hidden_layers=4, image_size=256, pretrain_image_size=256,
            window_block_indices=[0, 2], out_indices=[2, 4],
        ),
        d_model=64, decoder_layers=2, num_queries=20, decoder_ffn_dim=128, decoder_self_attention_heads=4,
        decoder_cross_attention_heads=4, group_detr=1, projector_scale_factors=[2.0, 0.5],
    ),
    "hf rf_detr": make_entry(
        "RfDetrForObjectDetection", "RfDetrConfig", (256, 256), others=(2, _SAMPLED),
        backbone_config=configs.RfDetrDinov2Config(
            hidden_size=96, num_attention_heads=3, num_hidden_layers=4, image_size=256, patch_size=16,
            out_indices=[2, 4], num_windows=2,
        ),
        d_model=64, decoder_layers=2, num_queries=20, decoder_ffn_dim=128, decoder_self_attention_heads=4,
        decoder_cross_attention_heads=4, group_detr=1,
    ),
    "hf maskformer": make_entry(
        "MaskFormerForInstanceSegmentation", "MaskFormerConfig", _SIZE, backbone_config=_SWIN,
        fpn_feature_size=64, mask_feature_size=64,
        decoder_config=configs.DetrConfig(**_DETR | {"num_queries": 20, "d_model": 96}, **_LAST_STAGE),
    ),
    "hf mask2former": make_entry(
        "Mask2FormerForUniversalSegmentation", "Mask2FormerConfig", _SIZE, others=(2, _SAMPLED), backbone_config=_SWIN,
        feature_size=64, mask_feature_size=64, hidden_dim=64, encoder_feedforward_dim=128, encoder_layers=2,
        decoder_layers=3, num_attention_heads=4, dim_feedforward=128, num_queries=20,
    ),
}  # fmt: skip
