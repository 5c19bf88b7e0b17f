"""Tiny models that take an image and write text, saved without tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.zoo.models import redraw

_TOWER: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip
_VISION = {**_TOWER, "image_size": 32, "patch_size": 8}
_WORDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_TEXT = {**_TOWER, "vocab_size": 64, "num_key_value_heads": 2, **_WORDS}
_GRID_TEXT = {**_TEXT, "head_dim": 16, "rope_parameters": {
    "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}  # fmt: skip
_GRID_IDS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}


def trocr() -> Any:
    """TrOCR: a ViT, and a decoder of another width behind it."""
    decoder = transformers.TrOCRConfig(
        vocab_size=64, d_model=24, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
        cross_attention_hidden_size=32, max_position_embeddings=16, **_WORDS,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**_VISION), decoder, decoder_start_token_id=0, **_WORDS
    )
    return transformers.VisionEncoderDecoderModel(config)


def donut() -> Any:
    """Donut: a Swin with an image that is no square."""
    swin = transformers.DonutSwinConfig(
        image_size=[64, 48], patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    decoder = transformers.MBartConfig(
        vocab_size=64, d_model=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, encoder_layers=1,
        is_decoder=True, add_cross_attention=True, max_position_embeddings=16, **_WORDS,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(swin, decoder, **_WORDS)
    return transformers.VisionEncoderDecoderModel(config)


def blip() -> Any:
    """BLIP for captions."""
    text = {**_TOWER, "vocab_size": 64, "encoder_hidden_size": 32, "max_position_embeddings": 16, **_WORDS,
            "sep_token_id": 3}  # fmt: skip
    return transformers.BlipForConditionalGeneration(transformers.BlipConfig(vision_config=_VISION, text_config=text))


def llava() -> Any:
    """LLaVA: CLIP's tower, a projection, Llama."""
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION), text_config=transformers.LlamaConfig(**_TEXT),
        image_token_index=60,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config)


def florence2() -> Any:
    """Florence-2: a DaViT, a projection, BART."""
    vision = transformers.Florence2VisionConfig(
        depths=[1, 1, 1, 1], embed_dim=[16, 16, 32, 32], num_heads=[2, 2, 4, 4], num_groups=[2, 2, 4, 4],
        window_size=2, projection_dim=24, max_temporal_embeddings=4, max_position_embeddings=8,
    )  # fmt: skip
    text = transformers.BartConfig(
        vocab_size=64, d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, **_WORDS,
    )  # fmt: skip
    config = transformers.Florence2Config(vision_config=vision, text_config=text, image_token_id=60)
    return transformers.Florence2ForConditionalGeneration(config)


def qwen2_vl() -> Any:
    """Qwen2-VL: patches of a grid, rotated positions, four of them merged."""
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    config = transformers.Qwen2VLConfig(vision_config=vision, text_config=_GRID_TEXT, **_GRID_IDS)
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl() -> Any:
    """Qwen2.5-VL: the same with windows in all blocks but one."""
    vision = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "patch_size": 8,
        "window_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=_GRID_TEXT, **_GRID_IDS)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> Any:
    """Qwen3-VL, whose encoder also interpolates positions."""
    vision = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "patch_size": 8,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = transformers.Qwen3VLConfig(vision_config=vision, text_config=_GRID_TEXT, **_GRID_IDS)
    return transformers.Qwen3VLForConditionalGeneration(config)


def llava_next() -> Any:
    """LLaVA-NeXT: crops of an image, and their sizes."""
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION), text_config=transformers.LlamaConfig(**_TEXT),
        image_token_index=60, image_grid_pinpoints=[[64, 64]],
    )  # fmt: skip
    return transformers.LlavaNextForConditionalGeneration(config)


def idefics3() -> Any:
    """Idefics 3: several crops of an image on an axis of their own."""
    config = transformers.Idefics3Config(
        vision_config=_VISION, text_config=transformers.LlamaConfig(**_TEXT), image_token_id=60, scale_factor=2
    )
    return transformers.Idefics3ForConditionalGeneration(config)


def save(build: Callable[[], Any], folder: Path) -> Path:
    """Save a model with weights that are drawn anew."""
    torch.manual_seed(0)
    redraw(build()).save_pretrained(folder)
    return folder
