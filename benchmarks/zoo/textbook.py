"""Two blocks of a ViT as a textbook writes them, for the forms of attention that libraries do not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.zoo.entry import Entry


class TextbookAttention(nn.Module):
    """Attention with a packed projection: reshaped to (batch, tokens, heads, 3 · size), *then* cut into q, k, v."""

    def __init__(self, width: int, heads: int, mask: torch.Tensor | None, *, returns_map: bool) -> None:
        super().__init__()
        self.heads, self.size, self.returns_map = heads, width // heads, returns_map
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the tokens, and the attention map if it is wanted."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, self.heads, 3 * self.size).permute(0, 2, 1, 3)
        q, k, v = qkv.chunk(3, dim=-1)
        scores = torch.matmul(q, k.transpose(-2, -1)) / self.size**0.5
        if self.mask is not None:
            scores = scores.masked_fill(self.mask == 0, -9e15)
        attention = functional.softmax(scores, dim=-1)
        values = torch.matmul(attention, v).permute(0, 2, 1, 3).reshape(batch, tokens, width)
        return self.out(values), attention if self.returns_map else None


class TextbookViT(nn.Module):
    """Two pre-norm blocks of the textbook's attention on 4 x 4 patches."""

    def __init__(self, *, masked: bool, returns_map: bool = False, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        mask = torch.tril(torch.ones(16, 16)) if masked else None
        self.embed = nn.Conv2d(3, width, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.attentions = nn.ModuleList(
            TextbookAttention(width, heads, mask, returns_map=returns_map) for _ in range(2)
        )
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> Any:
        """Return logits, and the last attention map if it is wanted."""
        x = self.embed(image).flatten(2).transpose(1, 2)
        attention = None
        for i in range(2):
            attended, attention = self.attentions[i](self.norms[2 * i](x))
            x = x + attended
            x = x + self.mlps[i](self.norms[2 * i + 1](x))
        logits = self.head(x.mean(1))
        return logits if attention is None else (logits, attention)


MODELS = {
    "textbook": Entry(lambda: TextbookViT(masked=False), (32, 32)),
    "textbook, masked": Entry(lambda: TextbookViT(masked=True), (32, 32)),
    "textbook, returns its map": Entry(lambda: TextbookViT(masked=False, returns_map=True), (32, 32)),
}
