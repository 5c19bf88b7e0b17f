"""Train the ViT with 197 tokens on the 60,000 training images and write `fine.safetensors` beside this file.

    python -m benchmarks.fashion_mnist.train_fine [--threads N]

A training that was stopped goes on at its last whole epoch. The 10,000 test images are scored once, at the very end,
with the weights as they are stored, in float16; no choice below depends on them.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.fashion_mnist.data import DEFAULT_OUTPUT, read_split
from benchmarks.fashion_mnist.fine import WEIGHTS, build
from benchmarks.fashion_mnist.model import normalize
from benchmarks.fashion_mnist.train import prepare, to_tensors
from benchmarks.training import Plan, save_weights, score_top1, train

# The share of patches that an epoch skips, and for how many epochs: with a quarter of the patches an epoch takes less
# than a third of the time. The last one trains on all of them, as inference runs.
DROPPED_PATCHES = ((0.75, 7), (0.5, 1), (0.0, 1))
PLAN = Plan(
    seed=0,
    epochs=sum(epochs for _, epochs in DROPPED_PATCHES),
    batch=128,
    peak_learning_rate=1.5e-3,
    label_smoothing=0.05,
    bfloat16=True,
)


def set_dropped_patches(model: Any, epoch: int) -> None:
    """Set the share of patches that this epoch skips."""
    for share, epochs in DROPPED_PATCHES:
        if epoch < epochs:
            model.patch_drop.prob = share
            return
        epoch -= epochs


def main() -> None:
    """Train, write the weights, score the test images once."""
    parser = argparse.ArgumentParser(description="Train the Fashion-MNIST ViT with 197 tokens.")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    torch.set_num_threads(parser.parse_args().threads)
    checkpoint = Path(DEFAULT_OUTPUT) / "train_fine.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)

    started = time.perf_counter()
    first_share = DROPPED_PATCHES[0][0]
    data = to_tensors(read_split("train"))
    model = train(partial(build, first_share), *data, PLAN, prepare, set_dropped_patches, checkpoint).half()
    print(f"trained in {time.perf_counter() - started:.0f} s")
    images, labels = to_tensors(read_split("test"))
    test_top1 = score_top1(model.float(), normalize(images), labels)
    save_weights(model.half(), WEIGHTS, name="fashion_mnist_fine", seed=PLAN.seed, test_top1=test_top1)
    print(f"test top-1: {test_top1:.2f} %")
    checkpoint.unlink()


if __name__ == "__main__":
    main()
