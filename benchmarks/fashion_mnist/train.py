"""Train the Fashion-MNIST ViT on the 60,000 training images and write ``vit.safetensors`` beside this file.

    python benchmarks/fashion_mnist/train.py

Two busy cores took 11 minutes. The 10,000 test images are scored once, at the very end; no choice below depends on
them. Everything is float32: bfloat16 autocast was slower for a model this narrow when tried on a busy CPU with AMX.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from data import LabelledImages, read_split
from model import build, normalized
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).resolve().with_name("vit.safetensors")

SEED = 0
# Most epochs see only half of the patches, at half the price; the last ones see what inference sees.
PATCH_DROP_RATE = 0.5
DROPPING_EPOCHS = 5
FULL_EPOCHS = 2
BATCH = 128
PEAK_LEARNING_RATE = 2e-3
WARMUP_FRACTION = 0.1
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
MIRROR_PROBABILITY = 0.5
STEPS_PER_LINE = 100
TEST_BATCH = 1000


def tensors(split: LabelledImages) -> tuple[Tensor, Tensor]:
    """Return a split as images in [0, 1], float32 (N, 1, 28, 28), and labels, int64 (N,)."""
    images = torch.from_numpy(split.images.astype(np.float32) / 255).unsqueeze(1)
    return images, torch.from_numpy(split.labels.astype(np.int64))


def half_mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror a random half of the images: clothes look the same from left and right."""
    mirror = torch.rand(len(images), 1, 1, 1, generator=generator) < MIRROR_PROBABILITY
    return torch.where(mirror, images.flip(-1), images)


def trained(images: Tensor, labels: Tensor) -> nn.Module:
    """Train the model from scratch on images in [0, 1] and return it in evaluation mode."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = build(PATCH_DROP_RATE)
    steps_per_epoch = math.ceil(len(images) / BATCH)
    steps = (DROPPING_EPOCHS + FULL_EPOCHS) * steps_per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LEARNING_RATE, total_steps=steps, pct_start=WARMUP_FRACTION, cycle_momentum=False
    )
    losses: list[float] = []
    for epoch in range(DROPPING_EPOCHS + FULL_EPOCHS):
        if epoch == DROPPING_EPOCHS:
            model.patch_drop.prob = 0.0
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            logits = model(normalized(half_mirrored(images[batch], generator)))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % STEPS_PER_LINE == 0:
                mean_loss = np.mean(losses[-STEPS_PER_LINE:])
                print(f"step {len(losses)}/{steps}: training loss {mean_loss:.4f}", flush=True)
    return model.eval()


@torch.inference_mode()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images in [0, 1] that the model labels correctly in float32, in percent."""
    predicted = torch.cat([model(normalized(batch)).argmax(dim=1) for batch in images.split(TEST_BATCH)])
    return 100 * float((predicted == labels).double().mean())


def main() -> None:
    """Train, score the test images once, write the weights."""
    parser = argparse.ArgumentParser(description="Train the Fashion-MNIST ViT.")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    torch.set_num_threads(parser.parse_args().threads)

    started = time.perf_counter()
    model = trained(*tensors(read_split("train")))
    print(f"trained in {time.perf_counter() - started:.0f} s")
    test_top1 = top1(model, *tensors(read_split("test")))
    provenance = {
        "name": "fashion_mnist",
        "seed": SEED,
        "test_top1": round(test_top1, 2),
        "torch": torch.__version__,
    }
    # One key only: safetensors writes several in a random order, and the file would differ from run to run.
    save_file(model.state_dict(), WEIGHTS, metadata={"provenance": json.dumps(provenance)})
    print(f"test top-1: {test_top1:.2f} %")


if __name__ == "__main__":
    main()
