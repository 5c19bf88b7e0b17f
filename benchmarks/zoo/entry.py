"""An entry of the zoo: how to build a model, and weights under which every error shows in its outputs.

A freshly initialised model proves little: with LayerScale at 1e-5, zero bias tables and tiny weights, zeroing every
attention changes some outputs by less than 1e-4. So all weights are drawn anew: matrices so that they keep the
variance; norms, LayerScale, biases and bias tables of order 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        build: returns the model; its weights are drawn anew.
        size: height and width of its images.
        other_softmaxes: the softmaxes that depend on the image and are no attention: no map of theirs multiplies
            values by a matrix product.
        others: the reason, if there are some.
    """

    build: Callable[[], nn.Module]
    size: tuple[int, int]
    other_softmaxes: int = 0
    others: str = ""


def redraw(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and statistic of a module anew, and put it into eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            matrix = parameter.ndim > 1 and len(parameter) > 1 and parameter[0].numel() > 1  # not tokens, not scales
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if matrix else 0.5 * noise + 0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        for name, parameter in module.named_parameters():
            if name.endswith("bias_table"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.eval()
