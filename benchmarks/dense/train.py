"""Train the DPT with 197 tokens on made-up rooms and write `dpt.safetensors` beside this file.

    python -m benchmarks.dense.train [--threads N]

A training that was stopped goes on at its last whole epoch. The test rooms are scored once, at the very end, with the
weights as they are stored, in float16; no choice below depends on them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.dense import scenes
from benchmarks.dense.model import MEAN, SIDE, STD, WEIGHTS, build
from benchmarks.training import Plan, save_weights, train

CHECKPOINT = Path("build/dense/train.pt")
SCENES = 8192
FIRST_SCENE = 1_000_000  # the scenes that measure have lower numbers
TEST_SCENES = 1000
PLAN = Plan(seed=0, epochs=6, batch=16, peak_learning_rate=1e-3, bfloat16=True)


def main() -> None:
    """Train, write the weights, score the test rooms once."""
    parser = argparse.ArgumentParser(description="Train the DPT for made-up rooms.")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    torch.set_num_threads(parser.parse_args().threads)
    CHECKPOINT.parent.mkdir(parents=True, exist_ok=True)

    started = time.perf_counter()
    images, depths = draw_scenes(FIRST_SCENE, SCENES)
    print(f"drew {SCENES:,} rooms in {time.perf_counter() - started:.0f} s", flush=True)
    model = train(_build, images, depths, PLAN, _prepare, checkpoint=CHECKPOINT, loss_of=compute_loss)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    model = model.half().float()
    scores = score_depth(model, *draw_scenes(0, TEST_SCENES))
    stored = model.half().to(memory_format=torch.contiguous_format)
    save_weights(stored, WEIGHTS, name="dense_dpt", seed=PLAN.seed, **scores)
    print(f"test rooms: {scores}")
    CHECKPOINT.unlink()


def draw_scenes(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Draw scenes: images, uint8 (N, 3, 112, 112) in channels_last, and depths in metres, float16 (N, 112, 112)."""
    images, depths = np.empty((count, SIDE, SIDE, 3), np.uint8), np.empty((count, SIDE, SIDE), np.float16)
    for place in range(count):
        images[place], depths[place] = scenes.draw(first + place)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(depths)


def normalize(images: Tensor) -> Tensor:
    """Bring uint8 images to what the model takes."""
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (MEAN, STD))
    return (images / 255 - mean) / std


def compute_loss(disparity: Tensor, depth: Tensor) -> Tensor:
    """Return the mean relative error of 1 / depth: near and far pixels count alike."""
    return (disparity * depth.float() - 1).abs().mean()


@torch.inference_mode()
def score_depth(model: nn.Module, images: Tensor, depths: Tensor) -> dict[str, float]:
    """Return δ1 and AbsRel in percent, in float32: means over images of equal size."""
    predicted = 1 / torch.cat(
        [model(normalize(images[i : i + PLAN.batch])) for i in range(0, len(images), PLAN.batch)]
    ).clamp_min(1 / 80)
    true = depths.float()
    ratio = torch.maximum(predicted / true, true / predicted)
    return {
        "test_delta1": 100 * float((ratio < 1.25).double().mean()),
        "test_abs_rel": 100 * float(((predicted - true).abs() / true).double().mean()),
    }


def _build() -> Any:
    """Return the model in the forms that train fastest on a CPU: attention as plain products, channels last."""
    model = build()
    model.set_attn_implementation("eager")
    return model.to(memory_format=torch.channels_last)


def _prepare(images: Tensor, generator: torch.Generator) -> Tensor:
    return normalize(images)


if __name__ == "__main__":
    main()
