"""Detectors in small: with learned queries (DETR), with those that a score selects (RT-DETR); and their look-alikes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, QUERIES, CLASSES = 32, 2, 6, 3


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with two heads."""
    split = [x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v)]
    return functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """A layer of an encoder; with `memory` one of a decoder, which reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.cross_q, self.cross_k, self.cross_v, self.cross_o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        x = self.norm1(x + self.o(attend(self.q(x), self.k(x), self.v(x))))
        if memory is not None:
            x = self.norm2(x + self.cross_o(attend(self.cross_q(x), self.cross_k(memory), self.cross_v(memory))))
        return self.norm3(x + self.fc2(functional.gelu(self.fc1(x))))


class Detector(nn.Module):
    """A ViT of two layers, `selects` queries or has learned ones, a decoder of two layers that refine their boxes."""

    def __init__(self, *, selects: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 8, 8)
        self.features = nn.ModuleList(Layer() for _ in range(2))
        self.decoding = nn.ModuleList(Layer() for _ in range(2))
        self.score, self.start = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 4)
        self.place = nn.Linear(4, WIDTH)
        self.classes = nn.Linear(WIDTH, CLASSES)
        self.boxes = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4)) for _ in range(2)
        )
        self.queries, self.anchors = (
            nn.Parameter(torch.randn(1, QUERIES, WIDTH)),
            nn.Parameter(torch.randn(1, QUERIES, 4)),
        )
        self.selects = selects

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.embed(x).flatten(2).transpose(1, 2)
        for layer in self.features:
            memory = layer(memory)
        rows, anchors = self.queries.expand(len(x), -1, -1), self.anchors.sigmoid()
        if self.selects:
            best = self.score(memory).amax(-1).topk(QUERIES, 1).indices[..., None]
            rows = memory.gather(1, best.expand(-1, -1, WIDTH))
            anchors = self.start(memory).gather(1, best.expand(-1, -1, 4)).sigmoid()
        for layer, box in zip(self.decoding, self.boxes, strict=True):
            rows = layer(rows + self.place(anchors), memory)
            clamped = anchors.clamp(0, 1)
            logit = torch.log(clamped.clamp(min=1e-5) / (1 - clamped).clamp(min=1e-5))
            anchors = (box(rows) + logit).sigmoid()
        return self.classes(rows), anchors


class Pooled(nn.Module):
    """A classifier whose only query pools the image, as SigLIP's; with `rows`, it reads several and averages them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Conv2d(3, WIDTH, 8, 8), Layer()
        self.k, self.v, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.query = nn.Parameter(torch.randn(1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.layer(self.embed(x).flatten(2).transpose(1, 2))
        return self.head(attend(self.query.expand(len(x), -1, -1), self.k(tokens), self.v(tokens))[:, 0])


class Dropping(nn.Module):
    """A classifier that goes on with the tokens of the best scores only, as EViT."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score = nn.Conv2d(3, WIDTH, 8, 8), nn.Linear(WIDTH, 1)
        self.first, self.second, self.head = Layer(), Layer(), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(self.embed(x).flatten(2).transpose(1, 2))
        best = self.score(tokens)[..., 0].topk(QUERIES, 1).indices[..., None]
        return self.head(self.second(tokens.gather(1, best.expand(-1, -1, WIDTH))).mean(1))
