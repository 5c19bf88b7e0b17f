"""The small ViT of `demo:digits`, and the preprocessing that it was trained with.

The model reads the 8x8 grey digits of scikit-learn, enlarged to 32x32. Patches of 4x4 give 64 tokens: enough for
attention to matter. With 0.45 M parameters the model is small enough to be part of the package.
`benchmarks/train_digits.py` trains its weights and imports every number below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

IMAGE_SIZE = (32, 32)
"""Height and width of the model's input, in pixels."""
MEAN = (0.5,)
"""Mean of the one grey channel, on the scale where a uint8 image is divided by 255."""
STD = (0.5,)
"""Standard deviation on the same scale. With this mean, inputs lie in [-1, 1]."""
INTERPOLATION = "bicubic"
"""Resampling filter, as Pillow computes it on uint8 images."""
LABELS = tuple("0123456789")
"""Class names, in the order of the model's outputs."""


def digits_vit() -> VisionTransformer:
    """Build the digits model with fresh weights: float32 (N, 1, 32, 32) in, logits (N, 10) out."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=4,
        in_chans=len(MEAN),
        num_classes=len(LABELS),
        embed_dim=96,
        depth=4,
        num_heads=3,
        mlp_ratio=4,
    )
