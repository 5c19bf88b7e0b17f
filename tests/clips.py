"""Small models of clips, and clips in folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image

from benchmarks.zoo.entry import redraw

FRAMES, SIDE, CLASSES = 4, 32, 5

_SMALL: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "num_labels": CLASSES,
    "image_size": SIDE,
}  # fmt: skip
_CROP = {"size": {"shortest_edge": 36}, "crop_size": {"height": SIDE, "width": SIDE}}


def _videomae() -> Any:
    config = transformers.VideoMAEConfig(**_SMALL, patch_size=8, num_frames=FRAMES)
    return transformers.VideoMAEForVideoClassification(config)


def _timesformer(attention: str) -> Callable[[], Any]:
    config = transformers.TimesformerConfig(**_SMALL, patch_size=8, num_frames=FRAMES, attention_type=attention)
    return lambda: transformers.TimesformerForVideoClassification(config)


def _vivit() -> Any:
    config = transformers.VivitConfig(**_SMALL, tubelet_size=[2, 8, 8], num_frames=FRAMES)
    return transformers.VivitForVideoClassification(config)


def _vjepa2() -> Any:
    config = transformers.VJEPA2Config(
        **{key: _SMALL[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_labels")},
        mlp_ratio=2, crop_size=SIDE, patch_size=8, frames_per_clip=FRAMES, tubelet_size=2, num_pooler_layers=1,
        pred_hidden_size=48, pred_num_attention_heads=3, pred_num_hidden_layers=1,
    )  # fmt: skip
    return transformers.VJEPA2ForVideoClassification(config)


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "videomae": (_videomae, lambda: transformers.VideoMAEImageProcessor(**_CROP)),
    "timesformer": (_timesformer("divided_space_time"), lambda: transformers.TimesformerVideoProcessor(**_CROP)),
    "timesformer-joint": (_timesformer("joint_space_time"), lambda: transformers.VideoMAEImageProcessor(**_CROP)),
    "vivit": (_vivit, lambda: transformers.VivitVideoProcessor(**_CROP)),
    "vivit-images": (_vivit, lambda: transformers.VivitImageProcessor(**_CROP)),
    "vjepa2": (_vjepa2, lambda: transformers.VJEPA2VideoProcessor(crop_size=SIDE)),
}
"""Model and processor of each family; the images' processor or the videos', as checkpoints have either."""


def save_model(name: str, folder: Path) -> Any:
    """Save a model with redrawn weights and its processor, and return the model."""
    build, make_processor = MODELS[name]
    model = redraw(build())
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return model


def make_clip(folder: Path, frames: int, seed: int = 0) -> Path:
    """Write a clip: a pattern that moves down, as frame1.png, frame2.png, …"""
    folder.mkdir(parents=True)
    pattern = np.random.default_rng(seed).integers(0, 256, (12, 15, 3), np.uint8)
    for number in range(frames):
        frame = Image.fromarray(np.roll(pattern, number, axis=0)).resize((60, 48), Image.Resampling.BILINEAR)
        frame.save(folder / f"frame{number + 1}.png")
    return folder


def make_clips(root: Path, *, classes: int = CLASSES, each: int = 2, frames: int = 11) -> Path:
    """Write `each` clips for each class, in one sub-folder per class."""
    for label in range(classes):
        for number in range(each):
            make_clip(root / str(label) / f"clip{number}", frames, seed=label * each + number)
    return root
