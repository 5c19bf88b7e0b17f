"""Image encoders of models that write text, as modules that take images alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FEATURES = "image_features"
"""The name of the output, (batch, tokens, size)."""


class TowerEncoder(nn.Module):
    """An encoder that a decoder reads directly: that of VisionEncoderDecoder (TrOCR, Donut) and BLIP."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.model = tower
        self.config = tower.config

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return the last hidden state."""
        return {FEATURES: self.model(pixel_values=pixel_values).last_hidden_state}


class ProjectedEncoder(nn.Module):
    """An encoder with the projection behind it: what the language model reads in place of words (LLaVA, Florence-2)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return the projected features."""
        model: Any = self.model
        answer = model.get_image_features(pixel_values=pixel_values)
        features = answer if isinstance(answer, (Tensor, list, tuple)) else answer.pooler_output
        return {FEATURES: features if isinstance(features, Tensor) else torch.stack(list(features))}


class GridEncoder(nn.Module):
    """An encoder of patches (Qwen2-VL, Qwen2.5-VL), for images of one size.

    What depends on the grid alone is computed once. The images of a batch do not see each other, so they run one by
    one, as one sequence each.
    """

    grid: Tensor
    positions: Tensor
    windows: Tensor | None

    def __init__(self, tower: nn.Module, size: tuple[int, int]) -> None:
        """Keep the positions and windows of images of `size` (height, width)."""
        from transformers import vision_utils

        super().__init__()
        self.model = tower
        config: Any = tower.config
        self.config = config
        self._patch, self._merge, self._frames = (
            int(number) for number in (config.patch_size, config.spatial_merge_size, config.temporal_patch_size)
        )
        rows, columns = (side // self._patch for side in size)
        grid = torch.tensor([[1, rows, columns]])
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("positions", vision_utils.get_vision_position_ids(grid, self._merge), persistent=False)
        # NumPy arrays, because the encoder turns them into lists, which an exporter cannot do with a tensor.
        self._fixed: dict[str, Any] = {"cu_seqlens": np.array([0, rows * columns])}
        self.register_buffer("windows", None, persistent=False)
        if (window := getattr(config, "window_size", None)) is not None:
            order, bounds = vision_utils.get_vision_window_index(grid, self._merge, window, self._patch)
            self.register_buffer("windows", order, persistent=False)
            self._fixed["cu_window_seqlens"] = np.asarray(bounds)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return what the language model reads: a token for each square of merged patches."""
        fixed = {**self._fixed, "position_ids": self.positions}
        if self.windows is not None:
            fixed["window_index"] = self.windows
        tokens = [self.model(self._cut(image), grid_thw=self.grid, **fixed).pooler_output for image in pixel_values]
        return {FEATURES: torch.stack(tokens)}

    def _cut(self, image: Tensor) -> Tensor:
        """Cut an image (channels, height, width) into patches (patches, numbers), in the order of the processor.

        Patches that are merged later stand together. A still image is shown for as many frames as a patch is long.
        """
        channels, height, width = image.shape
        side, merge = self._patch, self._merge
        rows, columns = height // (side * merge), width // (side * merge)
        cut = image.reshape(channels, rows, merge, side, columns, merge, side).permute(1, 4, 2, 5, 0, 3, 6)
        frames = cut.unsqueeze(5).expand(-1, -1, -1, -1, -1, self._frames, -1, -1)
        return frames.reshape(rows * columns * merge * merge, -1)
