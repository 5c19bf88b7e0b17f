"""Images for benchmarks in which their content does not matter, or hardly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from vitdeploy.data.preprocess import normalize
from vitdeploy.data.synthetic import natural_image
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

CROPS = 4


def make_input(preprocess: Preprocess, count: int = 1) -> Array:
    """Return made-up images as the model takes them: float32 (count, channels, height, width)."""
    return normalize(natural_image(0, preprocess, count), preprocess)


def save_made_up(path: Path, preprocess: Preprocess, count: int) -> str:
    """Save made-up images of the model's size as .npz; return the path as DATA of the command line."""
    np.savez(path, images=natural_image(0, preprocess, count).transpose(0, 2, 3, 1))
    return str(path)


def save_crops(folder: Path, count: int = CROPS) -> str:
    """Save random square crops of scikit-learn's two photographs as PNG; return the folder as DATA."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images  # 427 x 640 pixels
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        height, width, _ = photograph.shape
        size = int(rng.integers(height // 2, height + 1))
        top, left = (int(rng.integers(0, side - size + 1)) for side in (height, width))
        Image.fromarray(photograph[top : top + size, left : left + size]).save(folder / f"{number:02}.png")
    return str(folder)
