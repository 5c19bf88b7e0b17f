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
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, which a path alone does not bring along
from benchmarks.fashion_mnist.model import IMAGE_SIZE, LABELS, MEAN, FashionVit

WEIGHTS = Path(__file__).with_name("fine.safetensors")
PATCH = 2
WIDTH = 128


class ConvolutionalPatches(nn.Module):
    """Two convolutions in place of one: patches that overlap by a pixel learn faster (Xiao et al., 2021).

    float32 (N, channels, height, width) in, tokens (N, height·width / 4, width of the model) out.
    """

    def __init__(self, img_size: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.first = nn.Conv2d(in_chans, embed_dim // 2, 3, padding=1)
        self.second = nn.Conv2d(embed_dim // 2, embed_dim, 3, stride=patch_size, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return one token for each patch, in the order of rows."""
        maps: Tensor = self.second(functional.gelu(self.first(images)))
        return maps.flatten(2).transpose(1, 2)


def build(patch_drop_rate: float = 0.0) -> FashionVit:
    """Build the model with fresh weights: float32 (N, 1, 28, 28) in, logits (N, 10) out; 1.29 M parameters.

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
        embed_layer=ConvolutionalPatches,
    )


def load_trained() -> FashionVit:
    """Return the model with the committed weights, which are stored in float16."""
    model = build()
    model.load_state_dict({name: values.float() for name, values in load_file(WEIGHTS).items()})
    model.eval()
    return model
