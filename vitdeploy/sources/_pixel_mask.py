"""Models that take a mask of the padding beside the image: the mask becomes one more plane of the image."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

_MASK = "pixel_mask"


class WithPixelMask(nn.Module):
    """Call a transformers model with the mask that is in the last plane of its input.

    So the model keeps one input, for every backend. Planes are normalised: the mask is 1 for image, 0 for padding. An
    input without that plane has no padding.
    """

    def __init__(self, model: nn.Module, channels: int) -> None:
        super().__init__()
        self.model = model
        self._channels = channels

    def forward(self, pixel_values: Tensor) -> Any:
        """Run the model on (batch, channels or channels + 1, height, width)."""
        if pixel_values.shape[1] == self._channels:
            return self.model(pixel_values=pixel_values)
        mask = (pixel_values[:, self._channels] > 0.5).to(torch.long)
        return self.model(pixel_values=pixel_values[:, : self._channels], pixel_mask=mask)


def takes_mask(module: nn.Module) -> bool:
    """Return True if the model takes a mask of the padding."""
    return _MASK in inspect.signature(module.forward).parameters
