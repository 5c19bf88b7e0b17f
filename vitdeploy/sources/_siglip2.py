"""SigLIP 2 with images of one size. Its models take patches, and how many there are in each direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.sources._two_towers import has_two_towers


class ImagePatches(nn.Module):
    """The embedding of patches, from images (batch, channels, height, width) of one size."""

    positions: Tensor

    def __init__(self, embeddings: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.patch_embedding = embeddings.patch_embedding
        self._patch = int(embeddings.patch_size)
        grid = (size[0] // self._patch, size[1] // self._patch)
        side = embeddings.position_embedding_size
        with torch.inference_mode():
            positions = embeddings.resize_positional_embeddings(
                embeddings.position_embedding.weight.reshape(side, side, -1),
                torch.tensor([grid]),
                max_length=grid[0] * grid[1],
            )
        self.register_buffer("positions", positions.clone())

    def forward(self, pixel_values: Tensor, spatial_shapes: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return (batch, patches, size). A patch is its pixels, each with all channels."""
        batch, channels, height, width = pixel_values.shape
        side = self._patch
        rows, columns = height // side, width // side
        patches = pixel_values.reshape(batch, channels, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
        embedded: Tensor = self.patch_embedding(patches.reshape(batch, rows * columns, -1)) + self.positions
        return embedded


class FromImages(nn.Module):
    """A SigLIP 2 model that takes images, and no masks and shapes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, pixel_values: Tensor) -> Any:
        """Run it on images that are filled with patches."""
        return self.model(pixel_values=pixel_values, pixel_attention_mask=None, spatial_shapes=None)


def take_images(module: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Return the model for images of this size in place of patches."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if _is_embedding(child):
                setattr(parent, name, ImagePatches(child, size))
    return module if has_two_towers(module) else FromImages(module)


def _is_embedding(part: nn.Module) -> bool:
    return hasattr(part, "resize_positional_embeddings") and hasattr(part, "position_embedding_size")
