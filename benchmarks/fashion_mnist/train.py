"""Train the Fashion-MNIST ViT on the 60,000 training images and write `vit.safetensors` beside this file.

    python -m benchmarks.fashion_mnist.train [--threads N]

Two busy cores took 11 minutes. The 10,000 test images are scored once, at the very end; no choice below depends on
them. Everything is float32: bfloat16 autocast was slower for a model this narrow when tried on a busy CPU with AMX.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.fashion_mnist.data import LabelledImages, read_split
from benchmarks.fashion_mnist.model import build, normalize
from benchmarks.training import Plan, save_weights, score_top1, train

WEIGHTS = Path(__file__).resolve().with_name("vit.safetensors")

# Most epochs train on half of the patches, in half the time; the last ones train on all of them, as inference runs.
PATCH_DROP_RATE = 0.5
DROPPING_EPOCHS = 5
FULL_EPOCHS = 2
PLAN = Plan(seed=0, epochs=DROPPING_EPOCHS + FULL_EPOCHS, batch=128, peak_learning_rate=2e-3, label_smoothing=0.05)
MIRROR_PROBABILITY = 0.5


def to_tensors(split: LabelledImages) -> tuple[Tensor, Tensor]:
    """Return a split as images in [0, 1], float32 (N, 1, 28, 28), and labels, int64 (N,)."""
    images = torch.from_numpy(split.images.astype(np.float32) / 255).unsqueeze(1)
    return images, torch.from_numpy(split.labels.astype(np.int64))


def mirror_half(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror a random half of the images: clothes look the same from left and right."""
    mirror = torch.rand(len(images), 1, 1, 1, generator=generator) < MIRROR_PROBABILITY
    return torch.where(mirror, images.flip(-1), images)


def prepare(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment and normalize one batch."""
    return normalize(mirror_half(images, generator))


def stop_dropping(model: Any, epoch: int) -> None:
    """Stop dropping patches when the full epochs begin."""
    if epoch == DROPPING_EPOCHS:
        model.patch_drop.prob = 0.0


def main() -> None:
    """Train, score the test images once, write the weights."""
    parser = argparse.ArgumentParser(description="Train the Fashion-MNIST ViT.")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    torch.set_num_threads(parser.parse_args().threads)

    started = time.perf_counter()
    model = train(partial(build, PATCH_DROP_RATE), *to_tensors(read_split("train")), PLAN, prepare, stop_dropping)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    images, labels = to_tensors(read_split("test"))
    test_top1 = score_top1(model, normalize(images), labels)
    save_weights(model, WEIGHTS, name="fashion_mnist", seed=PLAN.seed, test_top1=test_top1)
    print(f"test top-1: {test_top1:.2f} %")


if __name__ == "__main__":
    main()
