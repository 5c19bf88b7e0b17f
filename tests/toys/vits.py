"""Small models of four families with redrawn weights, for `python:` specs: an error anywhere shows in their outputs."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo.entry import redraw
from tests.detectors import Detector

SIZE, CLASSES = 32, 10


def deit() -> Any:
    """A plain ViT: four blocks, 16 tokens and a class token."""
    from timm.models.vision_transformer import VisionTransformer

    return _prepared(
        VisionTransformer(img_size=SIZE, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=CLASSES)
    )


def rope() -> Any:
    """A ViT with rotary positions, as EVA-02 and DINOv3 have them."""
    from timm.models.eva import Eva

    return _prepared(
        Eva(
            img_size=SIZE, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=CLASSES, use_rot_pos_emb=True,
            use_abs_pos_emb=False, ref_feat_shape=(4, 4), rope_type="dinov3",
        )
    )  # fmt: skip


def swin() -> Any:
    """A Swin of two stages, with windows that shift."""
    from timm.models.swin_transformer import SwinTransformer

    return _prepared(
        SwinTransformer(
            img_size=64, patch_size=4, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=CLASSES
        ),
        size=64,
    )


def detector() -> Any:
    """A ViT with a decoder of learned queries, as in DETR."""
    torch.manual_seed(0)
    return _prepared(Detector(selects=False), redrawn=False)


def selecting_detector() -> Any:
    """A ViT with a decoder of queries that a score selects, as in RT-DETR."""
    torch.manual_seed(0)
    return _prepared(Detector(selects=True), redrawn=False)


def _prepared(model: Any, *, size: int = SIZE, redrawn: bool = True) -> Any:
    model = redraw(model) if redrawn else model.eval()
    model.vitdeploy_preprocess = {"size": (size, size), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return model
