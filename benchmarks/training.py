"""Train a small model from scratch on images in memory, score it, and save its weights with their provenance."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

WARMUP_FRACTION = 0.1
WEIGHT_DECAY = 0.05
STEPS_PER_LINE = 100
TEST_BATCH = 1000


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train: AdamW, one cycle of the learning rate."""

    seed: int
    epochs: int
    batch: int
    peak_learning_rate: float
    label_smoothing: float = 0.0
    bfloat16: bool = False
    """Whether products are computed in bfloat16 (autocast); weights and losses stay in float32."""


def train(
    build: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    prepare: Callable[[Tensor, torch.Generator], Tensor],
    before_epoch: Callable[[nn.Module, int], None] | None = None,
    checkpoint: Path | None = None,
    loss_of: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> nn.Module:
    """Train a model and return it in evaluation mode.

    The same plan and data give the same weights on one machine: the seed is set before the model is built.
    A training that was stopped goes on at its last whole epoch if it has a `checkpoint`, with the same result.

    Args:
        build: makes the model.
        images: (N, channels, height, width), as `prepare` takes them.
        labels: int64 (N,), or what `loss_of` takes.
        plan: how long and how fast.
        prepare: augments and normalizes one batch of images, with a random generator.
        before_epoch: is called with the model and the number of the epoch, from 0.
        checkpoint: a file that holds the state after each epoch; it is removed by whoever is done with it.
        loss_of: the loss of float32 outputs and the labels of one batch. The default is cross-entropy.
    """
    if loss_of is None:
        loss_of = partial(functional.cross_entropy, label_smoothing=plan.label_smoothing)
    torch.manual_seed(plan.seed)
    generator = torch.Generator().manual_seed(plan.seed)
    model = build()
    steps = plan.epochs * math.ceil(len(images) / plan.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.peak_learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=plan.peak_learning_rate,
        total_steps=steps,
        pct_start=WARMUP_FRACTION,
        cycle_momentum=False,
    )
    losses: list[float] = []
    done = 0
    if checkpoint is not None and checkpoint.exists():
        done = _restore(checkpoint, (model, optimizer, schedule), generator)
        losses = [math.nan] * (done * math.ceil(len(images) / plan.batch))
    for epoch in range(done, plan.epochs):
        if before_epoch is not None:
            before_epoch(model, epoch)
        for batch in torch.randperm(len(images), generator=generator).split(plan.batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.bfloat16):
                outputs = model(prepare(images[batch], generator))
            loss = loss_of(outputs.float(), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % STEPS_PER_LINE == 0:
                mean_loss = np.nanmean(losses[-STEPS_PER_LINE:])
                print(f"step {len(losses)}/{steps}: training loss {mean_loss:.4f}", flush=True)
        if checkpoint is not None:
            _store(checkpoint, (model, optimizer, schedule), generator, epoch + 1)
    return model.eval()


def _store(path: Path, parts: Iterable[Any], generator: torch.Generator, epochs: int) -> None:
    """Write the state after a number of whole epochs; a crash leaves the file as it was."""
    partial = path.with_suffix(".partial")
    random_states = (generator.get_state(), torch.get_rng_state())
    torch.save({"parts": [part.state_dict() for part in parts], "random": random_states, "epochs": epochs}, partial)
    partial.replace(path)


def _restore(path: Path, parts: Iterable[Any], generator: torch.Generator) -> int:
    """Read the state that `_store` wrote into the parts; return after how many epochs it was written."""
    state = torch.load(path, weights_only=True)
    for part, values in zip(parts, state["parts"], strict=True):
        part.load_state_dict(values)
    own_state, global_state = state["random"]
    generator.set_state(own_state)
    torch.set_rng_state(global_state)
    return int(state["epochs"])


@torch.inference_mode()
def score_top1(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the share of normalized images that the model labels correctly in float32, in percent."""
    predicted = torch.cat([model(batch).argmax(dim=1) for batch in inputs.split(TEST_BATCH)])
    return 100 * float((predicted == labels).double().mean())


def save_weights(model: nn.Module, path: Path, *, name: str, seed: int, **scores: float) -> None:
    """Write the weights, with what made them and their scores on test data as metadata."""
    rounded = {metric: round(score, 2) for metric, score in scores.items()}
    provenance = {"name": name, "seed": seed, **rounded, "torch": torch.__version__}
    # One key only: safetensors writes several in a random order, and the file would differ from run to run.
    save_file(model.state_dict(), path, metadata={"provenance": json.dumps(provenance)})
