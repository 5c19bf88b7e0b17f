"""Judge three retrained models against the one before them, as `gate NEW --baseline OLD --data DATA` does.

    python -m benchmarks.releases [--work DIR]

The model is that of `benchmarks/checkpoint_forms.py`, a small ViT of timm on Fashion-MNIST. It is trained further in
three ways: for longer but on half of the shirts, which is better over all and worse for shirts; a little, at a small
learning rate, which changes nothing; and as the first, with two outputs exchanged. The table goes to
`benchmarks/releases.md`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.checkpoint_forms import (
    DEFAULT_WORK,
    MEAN,
    NAME,
    PLAN,
    STD,
    State,
    build,
    call,
    enlarge,
    fine_tune,
)
from benchmarks.fashion_mnist.data import read_split
from benchmarks.fashion_mnist.model import LABELS
from benchmarks.tables import describe_machine, write_page
from benchmarks.training import train

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("retrained model", "top-1 before", "top-1 now", "worst class", "check", "status", "reason")
SHIRT, T_SHIRT = LABELS.index("Shirt"), LABELS.index("T-shirt/top")
FEW = 0.5
LIMITS = ("--max-regression", "1.5", "--max-class-regression", "5")


def train_further(state: State, images: Tensor, labels: Tensor, epochs: int, learning_rate: float) -> State:
    """Train the model from these weights on; return its weights."""

    def resume() -> nn.Module:
        model = build()
        model.load_state_dict(state)
        return model

    plan = replace(PLAN, epochs=epochs, peak_learning_rate=learning_rate, seed=1)
    return dict(train(resume, images, labels, plan, lambda batch, _: enlarge(batch)).state_dict())


def exchange_outputs(state: State) -> State:
    """Exchange the outputs of two classes."""
    order = torch.arange(len(LABELS))
    order[[T_SHIRT, SHIRT]] = order[[SHIRT, T_SHIRT]]
    return {
        key: value[order] if key.startswith("head.") and len(value) == len(LABELS) else value
        for key, value in state.items()
    }


def export(state: State, folder: Path) -> Path:
    """Save and export a model with the labels of the data."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "class_to_idx": {name: i for i, name in enumerate(LABELS)}}, folder / "best.pth")
    statistics = ("--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)), "--crop-pct", "1.0")
    words = ("export", f"timm:{NAME}", "--weights", folder / "best.pth", *statistics, "--target", "onnxruntime")
    ended = call(*words, "-o", folder / "artifact", "--force", "--json")
    if ended.code:
        raise SystemExit(ended.err)
    return folder / "artifact"


def main() -> None:
    """Train, export, judge, and write the page."""
    parser = argparse.ArgumentParser(description="Judge retrained models against the one before.")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help=f"default: {DEFAULT_WORK}")
    work: Path = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tuned.pt").exists():
        torch.save(fine_tune(2), work / "tuned.pt")
    state: State = torch.load(work / "tuned.pt", weights_only=True)
    split, test = read_split("train"), read_split("test")
    images, labels = torch.from_numpy(split.images.copy()).unsqueeze(1), torch.from_numpy(split.labels.astype(np.int64))
    np.savez_compressed(work / "all.npz", images=test.images, labels=test.labels)
    kept = (labels != SHIRT) | (torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < FEW)
    better = train_further(state, images[kept], labels[kept], 2, PLAN.peak_learning_rate / 2)
    models = {
        "trained for longer, with half of the shirts": better,
        "trained a little more": train_further(state, images[:6000], labels[:6000], 1, 1e-5),
        "the first, with two outputs exchanged": exchange_outputs(better),
    }
    old = export(state, work / "old")
    rows = []
    for name, weights in models.items():
        new = export(weights, work / name.replace(" ", "-").replace(",", ""))
        ended = call("gate", new, "--baseline", old, "--data", work / "all.npz", *LIMITS, "--json")
        verdict = json.loads(ended.out)
        metric, worst = verdict["release"]["metrics"]["top1"], verdict["release"]["groups"][0]
        figures = f"{metric['reference']:.2f}", f"{metric['deployed']:.2f}"
        where = f"{worst['name']}: {worst['reference']:.1f} to {worst['deployed']:.1f}"
        rows += [(name, *figures, where, check["name"], check["status"], check["why"]) for check in verdict["checks"]]
        rows.append((name, "", "", "", "verdict", f"{verdict['verdict']}, exit code {ended.code}", ""))
        print(*rows[-1], sep=" | ", flush=True)
    heading = [
        "# Release against release",
        "",
        f"`{NAME}` of timm on Fashion-MNIST, retrained in three ways, each judged against the model before on the",
        f"10,000 test images by `gate NEW --baseline OLD --data all.npz {' '.join(LIMITS)}`.",
        "Made by `python -m benchmarks.releases`.",
        "",
        describe_machine("torch", "timm", "onnxruntime"),
    ]
    write_page(TABLE, heading, COLUMNS, rows)


if __name__ == "__main__":
    main()
