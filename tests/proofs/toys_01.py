"""Modules for the tests of point 1, named by a model spec: `python:FILE:FACTORY`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tests.graphs import redrawn

CLASSES = 5


class Tokens(nn.Module):
    """Patches of a 32 x 32 image as 16 tokens, one attention block without a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, CLASSES)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, 16, 16)."""
        tokens: torch.Tensor = self.patch(x).flatten(2).transpose(1, 2)
        return tokens

    def attend(self, t: torch.Tensor) -> torch.Tensor:
        """One attention with a residual."""
        q, k, v = self.qkv(t).unflatten(-1, (3, 1, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        return t + functional.scaled_dot_product_attention(q, k, v).squeeze(1)

    def forward(self, x: torch.Tensor) -> Any:
        """Logits."""
        return self.head(self.attend(self.embed(x)).mean(1))


class Fourier(Tokens):
    """Mixes tokens by a real Fourier transform, as FNet does. Only `mixed` depends on it."""

    def forward(self, x: torch.Tensor) -> Any:
        """Two outputs: one without and one with the transform."""
        t = self.embed(x)
        mixed = torch.fft.fft(torch.fft.fft(t, dim=-1), dim=-2).real
        return {"plain": super().forward(x), "mixed": self.head(mixed.mean(1))}


class EarlyExit(Tokens):
    """Bright images skip the attention."""

    threshold = 0.02

    def forward(self, x: torch.Tensor) -> Any:
        """Logits."""
        t = self.embed(x)
        if bool(x.mean() < self.threshold):  # the baked branch
            t = self.attend(t)
        return self.head(t.mean(1))


class RareExit(EarlyExit):
    """Only images that are brighter than white skip the attention, so no example shows it."""

    threshold = 100.0


class Pooled(EarlyExit):
    """Returns features of large values beside its logits."""

    def forward(self, x: torch.Tensor) -> Any:
        """Logits, and features that reach 1e5."""
        return {"logits": super().forward(x), "features": 5e4 * self.embed(x)}


class TwoOutputs(Tokens):
    """Outputs of very different scales, without a branch."""

    def forward(self, x: torch.Tensor) -> Any:
        """Logits, and features that reach 1e5."""
        return {"first": super().forward(x), "second": 5e4 * self.embed(x)}


class Shapes(Tokens):
    """Python code reads shapes and weights, which are the same for every image, and something dynamo does not take."""

    def forward(self, x: torch.Tensor) -> Any:
        """Logits."""
        if torch.compiler.is_exporting() and not torch.jit.is_tracing():
            raise RuntimeError("not with this exporter")
        if x.shape[2] % 8 != 0 or bool(self.head.weight.sum() > 1e6):
            raise ValueError
        side = int(x.shape[3]) // 8
        return super().forward(x) + side


class Scripted(Tokens):
    """A branch that TorchScript keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.choose = torch.jit.script(choose_side)

    def forward(self, x: torch.Tensor) -> Any:
        """Logits; bright images give others."""
        if torch.compiler.is_exporting() and not torch.jit.is_tracing():
            raise RuntimeError("not with this exporter")
        return super().forward(self.choose(x))


def choose_side(x: torch.Tensor) -> torch.Tensor:
    """Darken bright images."""
    if bool(x.mean() > 0.02):
        return 0.5 * x
    return x


class Dropped(Tokens):
    """Dropout that `eval()` does not switch off."""

    def forward(self, x: torch.Tensor) -> Any:
        """Logits, which are other ones in each run."""
        return super().forward(functional.dropout(x, 0.1, training=True))


class DarkNan(Tokens):
    """NaN for dark images."""

    def forward(self, x: torch.Tensor) -> Any:
        """Logits."""
        return super().forward(x) * torch.sqrt(x.mean() + 1.0)


class BatchStatistics(Tokens):
    """BatchNorm that takes its statistics from the batch, so an image's answer depends on the others."""

    def forward(self, x: torch.Tensor) -> Any:
        """Logits."""
        return super().forward(functional.batch_norm(x, None, None, training=True))


class MixedBatch(Tokens):
    """Attention over all tokens of a batch."""

    def forward(self, x: torch.Tensor) -> Any:
        """Logits."""
        t = self.embed(x)
        mixed = self.attend(t.reshape(1, -1, t.shape[-1])).reshape(t.shape)
        return self.head(mixed.mean(1))


class PooledWindows(nn.Module):
    """Attention with four heads in windows of 4x4, whose queries are pooled to 2x2, as in Hiera and SAM 2."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv, self.head = nn.Conv2d(3, 64, 4, 4), nn.Linear(64, 192), nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> Any:
        """Logits."""
        maps = self.patch(x)
        batch, channels, height, width = maps.shape
        windows = maps.view(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1)
        q, k, v = self.qkv(windows.reshape(-1, 16, channels)).unflatten(-1, (3, 4, 16)).unbind(2)
        grid = q.reshape(-1, 4, 4, channels).permute(0, 3, 1, 2)
        q = functional.max_pool2d(grid, 2).permute(0, 2, 3, 1).reshape(-1, 4, 4, 16)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, 4, channels)
        return self.head(mixed).mean((1, 2))


def fourier() -> nn.Module:
    """See the class of that name; so for the others."""
    return redrawn(Fourier())


def tokens() -> nn.Module:
    """See the class."""
    return redrawn(Tokens())


def early_exit() -> nn.Module:
    """See the class."""
    return redrawn(EarlyExit())


def rare_exit() -> nn.Module:
    """See the class."""
    return redrawn(RareExit())


def pooled() -> nn.Module:
    """See the class."""
    return redrawn(Pooled())


def two_outputs() -> nn.Module:
    """See the class."""
    return redrawn(TwoOutputs())


def shapes() -> nn.Module:
    """See the class."""
    return redrawn(Shapes())


def scripted() -> nn.Module:
    """See the class."""
    return redrawn(Scripted())


def dropped() -> nn.Module:
    """See the class."""
    return redrawn(Dropped())


def dark_nan() -> nn.Module:
    """See the class."""
    return redrawn(DarkNan())


def batch_statistics() -> nn.Module:
    """See the class."""
    return redrawn(BatchStatistics())


def mixed_batch() -> nn.Module:
    """See the class."""
    return redrawn(MixedBatch())


def pooled_windows() -> nn.Module:
    """As many heads as queries."""
    return redrawn(PooledWindows())
