"""A small ViT in plain PyTorch that can merge tokens by itself, to compare the pass with.

It shares no code with the pass: it goes through images, patches and matches one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.graphs import redrawn

PATCHES, WIDTH, HEADS, DEPTH = 16, 32, 2, 4


class Attention(nn.Module):
    """Attention over tokens, with sizes that count keys."""

    def __init__(self, head_bias: bool) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head_bias = nn.Parameter(torch.zeros(HEADS, 1, 1)) if head_bias else None

    def forward(self, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the tokens, and the keys (batch, heads, tokens, head size)."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * (c // HEADS) ** -0.5
        if self.head_bias is not None:
            scores = scores + self.head_bias.expand(HEADS, PATCHES + 1, PATCHES + 1)[:, :n, :n]
        if sizes is not None:
            scores = scores + sizes.log()[:, None, None, :]
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)), k


class Block(nn.Module):
    """A block before its norms, which merges tokens between attention and MLP."""

    def __init__(self, head_bias: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = Attention(head_bias)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Run without merging."""
        x = x + self.attn(self.norm1(x), None)[0]
        return self.mlp(x)

    def mlp(self, x: Tensor) -> Tensor:
        """Add the MLP of each token."""
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    """A ViT for images of 32 x 32.

    Attributes:
        special: the number of tokens before the patches.
        pool: "class" reads the first token, "two" the first and the second, "mean" averages the patches, "all" averages
            every token, "dense" returns the patches as a map, "tokens" all tokens.
    """

    def __init__(self, special: int, pool: str, *, positions: bool = True, head_bias: bool = False) -> None:
        super().__init__()
        self.special, self.pool = special, pool
        self.embed = nn.Conv2d(3, WIDTH, 8, 8)
        self.tokens = nn.Parameter(torch.zeros(1, special, WIDTH)) if special else None
        self.positions = nn.Parameter(torch.zeros(1, PATCHES + special, WIDTH)) if positions else None
        self.blocks = nn.ModuleList(Block(head_bias) for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)
        self.second = nn.Linear(WIDTH, 10) if pool == "two" else None
        self.map = nn.Conv2d(WIDTH, 3, 3, padding=1) if pool == "dense" else None

    def stem(self, images: Tensor) -> Tensor:
        """Return the tokens before the first block."""
        x = self.embed(images).flatten(2).transpose(1, 2)
        if self.tokens is not None:
            x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], 1)
        return x if self.positions is None else x + self.positions

    def forward(self, images: Tensor) -> Tensor:
        """Run without merging."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.answer(self.norm(x), None, None)

    def merged(self, images: Tensor, schedule: Mapping[int, int]) -> Tensor:
        """Run with merging: block -> how many tokens are removed behind its attention."""
        answers = []
        for image in images:  # one by one: a mistake over the batch cannot be repeated here
            x, sizes = self.stem(image[None]), None
            groups = [[i] for i in range(x.shape[1])]
            for number, block in enumerate(self.blocks):
                update, keys = block.attn(block.norm1(x), sizes)
                x = x + update
                if number in schedule:
                    x, groups = merge(x, keys, groups, schedule[number], self.special)
                    sizes = torch.tensor([[float(len(group)) for group in groups]])
                x = block.mlp(x)
            answers.append(self.answer(self.norm(x), sizes, groups))
        return torch.cat(answers)

    def dropped(self, images: Tensor, positions: Mapping[int, Mapping[int, int]]) -> Tensor:
        """Run with dropped patches: block -> patch -> the one that stands in for it."""
        x, left = self.stem(images), list(range(PATCHES))
        owner = {patch: patch for patch in left}
        for number, block in enumerate(self.blocks):
            x = x + block.attn(block.norm1(x), None)[0]
            gone = positions.get(number, {})
            rows = [self.special + row for row, patch in enumerate(left) if patch not in gone]
            x = x[:, [*range(self.special), *rows]]
            left = [patch for patch in left if patch not in gone]
            owner = {patch: gone.get(other, other) for patch, other in owner.items()}
            x = block.mlp(x)
        x = self.norm(x)
        if self.pool in ("dense", "tokens"):
            x = x[:, [*range(self.special), *(self.special + left.index(owner[patch]) for patch in range(PATCHES))]]
        return self.answer(x, None, None)

    def answer(self, x: Tensor, sizes: Tensor | None, groups: list[list[int]] | None) -> Tensor:
        """Read the last tokens."""
        if self.pool in ("dense", "tokens") and groups is not None:
            place = {token: row for row, group in enumerate(groups) for token in group}
            x = x[:, [place[token] for token in sorted(place)]]
        if self.pool == "tokens":
            return x
        if self.map is not None:
            return self.map(x[:, self.special :].transpose(1, 2).reshape(x.shape[0], WIDTH, 4, 4))
        if self.pool == "class":
            return self.head(x[:, 0])
        if self.second is not None:
            return (self.head(x[:, 0]) + self.second(x[:, 1])) / 2
        first = self.special if self.pool == "mean" else 0
        if sizes is None:
            return self.head(x[:, first:].mean(1))
        weights = sizes[:, first:, None]
        return self.head((x[:, first:] * weights).sum(1) / weights.sum(1))


def merge(
    x: Tensor, keys: Tensor, groups: list[list[int]], removed: int, special: int
) -> tuple[Tensor, list[list[int]]]:
    """Merge the tokens of one image. `groups` holds the original tokens that each token stands for."""
    similarity = functional.normalize(keys[0].mean(0), dim=-1)
    first = list(range(special, len(groups), 2))
    second = list(range(special + 1, len(groups), 2))
    matches = []
    for a in first:
        values = [float(similarity[a] @ similarity[b]) for b in second]
        best = max(range(len(second)), key=values.__getitem__)
        matches.append((values[best], a, second[best]))
    matches.sort(key=lambda match: -match[0])
    target = {a: b for _, a, b in matches[:removed]}
    rows, new_groups = [], []
    for i in [*range(special), *(a for _, a, _ in matches[removed:]), *second]:
        members = [i, *(a for a, b in target.items() if b == i)]
        count = [len(groups[m]) for m in members]
        rows.append(sum(x[0, m] * n for m, n in zip(members, count, strict=True)) / sum(count))
        new_groups.append([token for m in members for token in groups[m]])
    return torch.stack(rows)[None], new_groups


def vit(special: int = 1, pool: str = "class", **options: Any) -> Vit:
    """A ViT with redrawn weights."""
    model = redrawn(Vit(special, pool, **options))
    assert isinstance(model, Vit)
    return model
