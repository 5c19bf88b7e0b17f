"""Small ViTs that take more than an image, and examples of what they take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.zoo.models import redraw

SIDE, CLASSES, CAMERAS = 32, 3, 5


class Block(nn.Module):
    """A block of a ViT."""

    def __init__(self, size: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2, self.heads = nn.LayerNorm(size), nn.LayerNorm(size), heads
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, size = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, size // self.heads)
        mixed = nn.functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, size))
        result: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return result


class Conditioned(nn.Module):
    """Classes of an image, a point (two floats) and the number of a camera."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.point = nn.Conv2d(3, 32, 8, 8), nn.Linear(2, 32)
        self.camera, self.blocks = nn.Embedding(CAMERAS, 32), nn.Sequential(Block(), Block())
        self.head = nn.Linear(32, CLASSES)

    def forward(self, image: Tensor, point: Tensor, camera: Tensor) -> Tensor:
        tokens = self.patch(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.point(point)[:, None], self.camera(camera)[:, None], tokens], dim=1)
        result: Tensor = self.head(self.blocks(tokens).mean(dim=1))
        return result


class Stereo(nn.Module):
    """Classes of two images."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks, self.head = nn.Conv2d(3, 32, 8, 8), Block(), nn.Linear(32, CLASSES)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        tokens = torch.cat([self.patch(left).flatten(2), self.patch(right).flatten(2)], dim=2).transpose(1, 2)
        result: Tensor = self.head(self.blocks(tokens).mean(dim=1))
        return result


def conditioned() -> nn.Module:
    """Return the model with redrawn weights, as a factory of `python:`."""
    model = redraw(Conditioned())
    model.vitdeploy_preprocess = {"size": (SIDE, SIDE)}  # type: ignore[assignment]
    return model


def stereo() -> nn.Module:
    """Return the model with redrawn weights, as a factory of `python:`."""
    model = redraw(Stereo())
    model.vitdeploy_preprocess = {"size": (SIDE, SIDE)}  # type: ignore[assignment]
    return model


SPEC = "python:tests.further_inputs:conditioned"


def save_examples(folder: Path) -> dict[str, str]:
    """Save 7 examples of a point and 4 of a camera. Return their files by name."""
    rng = np.random.default_rng(0)
    np.savez(folder / "point.npz", point=rng.standard_normal((7, 2)))
    np.savez(folder / "camera.npz", rng.integers(0, CAMERAS, 4))
    return {"point": str(folder / "point.npz"), "camera": str(folder / "camera.npz")}


def save_data(path: Path, count: int = 20) -> Path:
    """Save images with labels and the other inputs."""
    rng = np.random.default_rng(1)
    np.savez(
        path,
        images=rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8),
        labels=np.arange(count) % CLASSES,
        point=rng.standard_normal((count, 2)),
        camera=rng.integers(0, CAMERAS, count),
    )
    return path
