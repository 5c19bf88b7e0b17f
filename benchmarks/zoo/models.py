"""All models of the zoo, with redrawn weights."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo import hf_detectors, hf_models, textbook, timm_models
from benchmarks.zoo.entry import Entry, redraw

MODELS: dict[str, Entry] = {
    **timm_models.MODELS,
    **hf_models.MODELS,
    **hf_detectors.MODELS,
    **textbook.MODELS,
}


def build(name: str) -> Any:
    """Build a model of the zoo, as vitdeploy's `python:` source takes it."""
    entry = MODELS[name]
    torch.manual_seed(0)
    model: Any = redraw(entry.build())
    model.vitdeploy_preprocess = {"size": entry.size, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return model
