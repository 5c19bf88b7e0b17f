"""The Fashion-MNIST ViT, for `python:benchmarks/fashion_mnist/model.py:build`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from timm.models.vision_transformer import VisionTransformer

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SIZE = (28, 28)
# Mean and standard deviation of the 60,000 training images on the scale [0, 1].
MEAN = (0.2860,)
STD = (0.3530,)
LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class FashionVit(VisionTransformer):
    """A timm ViT with its preprocessing and class names, which `vitdeploy` reads."""

    vitdeploy_preprocess: ClassVar[dict[str, Any]] = {
        "size": list(IMAGE_SIZE),
        "channels": 1,
        "mean": list(MEAN),
        "std": list(STD),
        "interpolation": "bicubic",
    }
    vitdeploy_labels: ClassVar[list[str]] = list(LABELS)


def build(patch_drop_rate: float = 0.0) -> FashionVit:
    """Build the model with fresh weights: float32 (N, 1, 28, 28) in, logits (N, 10) out.

    `patch_drop_rate` is the share of patches that training skips. It adds no weights, and evaluation ignores it.
    """
    return FashionVit(
        img_size=IMAGE_SIZE,
        patch_size=4,
        in_chans=len(MEAN),
        num_classes=len(LABELS),
        embed_dim=96,
        depth=6,
        num_heads=3,
        patch_drop_rate=patch_drop_rate,
    )


def normalize(images: Tensor) -> Tensor:
    """Bring images in [0, 1] to what the model takes."""
    return (images - MEAN[0]) / STD[0]
