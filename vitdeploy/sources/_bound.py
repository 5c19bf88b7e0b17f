"""A PyTorch module whose inputs beside the image are constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.session import Array


class Bound(nn.Module):
    """Call a module with an image and fixed values."""

    def __init__(self, model: nn.Module, values: Mapping[str, Array], image: str | None) -> None:
        """Keep the values as buffers, so that the digest of the weights covers them.

        Args:
            model: the module.
            values: its other arguments, by name.
            image: the name of the image's parameter; None: the first one.
        """
        super().__init__()
        self.model = model
        self._image = image
        self._names = tuple(values)
        for name, value in values.items():
            self.register_buffer(f"bound_{name}", torch.from_numpy(value.copy()))

    def forward(self, pixel_values: Tensor) -> Any:
        """Run the model on (batch, channels, height, width)."""
        values = {name: getattr(self, f"bound_{name}") for name in self._names}
        if self._image is None:
            return self.model(pixel_values, **values)
        return self.model(**{self._image: pixel_values}, **values)


class Open(nn.Module):
    """Call a module with an image, open inputs and fixed values, all by name."""

    def __init__(self, model: nn.Module, values: Mapping[str, Array], image: str, input_name: str) -> None:
        """Keep the values as buffers.

        Args:
            model: the module.
            values: its arguments that are fixed, by name.
            image: the name of the image's parameter.
            input_name: what callers call the image.
        """
        super().__init__()
        self.model = model
        self._image = image
        self.input_name = input_name
        self._names = tuple(values)
        for name, value in values.items():
            self.register_buffer(f"bound_{name}", torch.from_numpy(value.copy()))

    def forward(self, **inputs: Tensor) -> Any:
        """Run the model on an image (batch, channels, height, width), and the values of the other inputs."""
        others = {name: value for name, value in inputs.items() if name != self.input_name}
        fixed = {name: getattr(self, f"bound_{name}") for name in self._names}
        return self.model(**{self._image: inputs[self.input_name]}, **others, **fixed)
