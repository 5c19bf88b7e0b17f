"""Tiny models of two towers, each with a tokenizer that is made here: CLIP, SigLIP, ALIGN, OWL, Grounding DINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from benchmarks.as_clip import save_tokenizer
from benchmarks.zoo.models import redraw

_TEXT = """
    a an the of photo picture small large red blue cat dog bird fish horse car tree house boat zero one two three four
    five six seven eight nine top trouser pullover dress coat sandal shirt sneaker bag boot t ankle
"""
WORDS = tuple(_TEXT.split())
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_BERT_SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
"""As in the vocabulary of BERT, which Grounding DINO has in its code."""


def word_tokenizer(folder: Path, *, end: str = "") -> None:
    """Save a tokenizer of whole words; `end` is a token after the last one."""
    vocab = {name: index for index, name in enumerate(("<pad>", "<unk>", "</s>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, vocab[end])])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
        model_input_names=["input_ids"],
    ).save_pretrained(folder)  # fmt: skip


def letter_tokenizer(folder: Path) -> None:
    """Save a tokenizer of SigLIP 2 of single letters."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *_LETTERS, "▁"]
    tokenizer = transformers.Siglip2Tokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save_pretrained(folder)


def bert_tokenizer(folder: Path) -> None:
    """Save a WordPiece tokenizer whose special tokens have the numbers of BERT."""
    names = [f"[unused{index}]" for index in range(1100)]
    for token, index in _BERT_SPECIAL.items():
        names[index] = token
    for index, word in enumerate((*WORDS, *_LETTERS, *(f"##{letter}" for letter in _LETTERS))):
        names[200 + index] = word
    vocab = {name: index for index, name in enumerate(names)}
    transformers.BertTokenizer(vocab=vocab).save_pretrained(folder)


def save_clip(folder: Path, *, image: int = 32, texts: int = 24, **vision: Any) -> Path:
    """Save a CLIPModel with its tokenizer and its image processor."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**_TOWER, "vocab_size": 54, "max_position_embeddings": texts, "bos_token_id": 52,
                     "eos_token_id": 53, "pad_token_id": 53},
        vision_config={**_TOWER, "image_size": image, "patch_size": 8, **vision},
        projection_dim=24,
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": image}, crop_size={"height": image, "width": image}
    ).save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    """Save a SiglipModel, whose tokenizer pads to the length of the tower."""
    torch.manual_seed(0)
    config = transformers.SiglipConfig(
        text_config={**_TOWER, "vocab_size": 66, "max_position_embeddings": 16, "projection_size": 32},
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
    )
    transformers.SiglipModel(config).save_pretrained(folder)
    word_tokenizer(folder, end="</s>")
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_siglip2(folder: Path) -> Path:
    """Save a Siglip2Model: it takes patches of images of any aspect ratio."""
    torch.manual_seed(0)
    config = transformers.Siglip2Config(
        text_config={**_TOWER, "vocab_size": 66, "max_position_embeddings": 24, "projection_size": 32},
        vision_config={**_TOWER, "num_patches": 16, "patch_size": 8},
    )
    transformers.Siglip2Model(config).save_pretrained(folder)
    letter_tokenizer(folder)
    transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(folder)
    return folder


def save_align(folder: Path) -> Path:
    """Save an AlignModel: an EfficientNet, and a BERT whose first token is the text."""
    torch.manual_seed(0)
    config = transformers.AlignConfig(
        text_config={**_TOWER, "vocab_size": 1100, "max_position_embeddings": 24},
        vision_config={"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 640},
        projection_dim=80,
    )  # fmt: skip
    redraw(transformers.AlignModel(config)).save_pretrained(folder)
    bert_tokenizer(folder)
    transformers.EfficientNetImageProcessor(size={"height": 64, "width": 64}, include_top=False).save_pretrained(folder)
    return folder


def save_chinese_clip(folder: Path) -> Path:
    """Save a ChineseCLIPModel: a ViT, and a BERT without pooling."""
    torch.manual_seed(0)
    config = transformers.ChineseCLIPConfig(
        text_config={**_TOWER, "vocab_size": 1100, "max_position_embeddings": 24},
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8}, projection_dim=24,
    )  # fmt: skip
    redraw(transformers.ChineseCLIPModel(config)).save_pretrained(folder)
    bert_tokenizer(folder)
    transformers.ChineseCLIPImageProcessor(
        size={"height": 32, "width": 32}, do_center_crop=False
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_owlvit(folder: Path) -> Path:
    """Save an OwlViTForObjectDetection."""
    torch.manual_seed(0)
    config = transformers.OwlViTConfig(
        text_config={**_TOWER, "vocab_size": 54, "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53,
                     "pad_token_id": 53},
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )  # fmt: skip
    redraw(transformers.OwlViTForObjectDetection(config)).save_pretrained(folder)
    save_tokenizer(folder)
    transformers.OwlViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_mm_grounding_dino(folder: Path) -> Path:
    """Save an MMGroundingDinoForObjectDetection."""
    torch.manual_seed(0)
    config = transformers.MMGroundingDinoConfig(**_grounding())
    redraw(transformers.MMGroundingDinoForObjectDetection(config)).save_pretrained(folder)
    return _with_grounding_tools(folder)


def save_owlv2(folder: Path) -> Path:
    """Save an Owlv2ForObjectDetection."""
    torch.manual_seed(0)
    config = transformers.Owlv2Config(
        text_config={**_TOWER, "vocab_size": 54, "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53,
                     "pad_token_id": 53},
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )  # fmt: skip
    transformers.Owlv2ForObjectDetection(config).save_pretrained(folder)
    save_tokenizer(folder)
    transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_grounding_dino(folder: Path) -> Path:
    """Save a GroundingDinoForObjectDetection with a Swin backbone and a BERT."""
    torch.manual_seed(0)
    transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig(**_grounding())).save_pretrained(
        folder
    )
    return _with_grounding_tools(folder)


def _grounding() -> dict[str, Any]:
    backbone = transformers.SwinConfig(
        image_size=128, patch_size=4, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4,
        out_indices=[2, 3, 4],
    )  # fmt: skip
    text = transformers.BertConfig(
        vocab_size=1100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return {
        "backbone_config": backbone, "text_config": text, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "num_queries": 12, "max_text_len": 64, "num_feature_levels": 4,
    }  # fmt: skip


def _with_grounding_tools(folder: Path) -> Path:
    bert_tokenizer(folder)
    transformers.GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 128}).save_pretrained(folder)
    return folder
