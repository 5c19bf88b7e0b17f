"""A ViT with 197 tokens for Fashion-MNIST, for `python:benchmarks/fashion_mnist/fine.py:load_trained`.

It looks at patches of 2x2 pixels, so that there are as many tokens as in a ViT for ImageNet: fewer tokens
(`--merge-tokens`) are measured with it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, which a path alone does not bring along
from benchmarks.fashion_mnist.model import IMAGE_SIZE, LABELS, MEAN, FashionVit

WEIGHTS = Path(__file__).with_name("fine.safetensors")
PATCH = 2
WIDTH = 128


def _normalized(in_channels: int, channels: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(channels), nn.ReLU()


class ConvolutionalStem(nn.Module):
    """Four small convolutions in place of one (Xiao et al., 2021, "Early convolutions help transformers see better").

    A ViT this small learns much faster with them. Inference folds the batch normalization into the convolutions.
    float32 (N, channels, height, width) in, tokens (N, height·width / 4, width of the model) out.
    """

    def __init__(self, img_size: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        narrow, wide = embed_dim // 4, embed_dim // 2
        self.layers = nn.Sequential(
            *_normalized(in_chans, narrow, 1),
            *_normalized(narrow, wide, patch_size),
            *_normalized(wide, wide, 1),
            nn.Conv2d(wide, embed_dim, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return one token for each patch, in the order of rows."""
        maps: Tensor = self.layers(images)
        return maps.flatten(2).transpose(1, 2)


def build(patch_drop_rate: float = 0.0) -> FashionVit:
    """Build the model with fresh weights: float32 (N, 1, 28, 28) in, logits (N, 10) out; 1.28 M parameters.

    `patch_drop_rate` is the share of patches that training skips. It adds no weights, and evaluation ignores it.
    """
    return FashionVit(
        img_size=IMAGE_SIZE,
        patch_size=PATCH,
        in_chans=len(MEAN),
        num_classes=len(LABELS),
        embed_dim=WIDTH,
        depth=6,
        num_heads=4,
        patch_drop_rate=patch_drop_rate,
        embed_layer=ConvolutionalStem,
    )


def load_trained() -> FashionVit:
    """Return the model with the committed weights, which are stored in float16."""
    model = build()
    model.load_state_dict({name: values.float() for name, values in load_file(WEIGHTS).items()})
    model.eval()
    return model
