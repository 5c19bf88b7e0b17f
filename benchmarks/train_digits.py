"""Reproduce the two files behind `demo:digits`: the data set and the weights of the small ViT.

    python -m benchmarks.train_digits              write vitdeploy/assets/digits.npz and digits.safetensors
    python -m benchmarks.train_digits --validate   train the same way, score the calibration split, write nothing

The images are the 1,797 handwritten digits that scikit-learn ships (UCI "Optical Recognition of Handwritten Digits",
Alpaydin and Kaynak 1998), split once: 1000 train, 197 calibration, 600 test, stratified by class. Only the train split
is used for training. The hyper-parameters below were checked with `--validate`, not tuned on the test split. That one
is scored once, at the very end, and the figure goes into the metadata of the weights.

Needs torch, timm, Pillow, safetensors and scikit-learn. Two cores take a few minutes.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.training import Plan, save_weights, score_top1, train
from vitdeploy.sources._digits_vit import IMAGE_SIZE, INTERPOLATION, MEAN, STD, digits_vit

ASSETS = Path(__file__).resolve().parents[1] / "vitdeploy" / "assets"

SPLIT_SEED = 0
TRAIN_COUNT, CALIBRATION_COUNT, TEST_COUNT = 1000, 197, 600
SOURCE_MAXIMUM = 16  # scikit-learn stores the digits as counts of inked pixels in 4x4 cells

PLAN = Plan(seed=0, epochs=90, batch=50, peak_learning_rate=1e-3, label_smoothing=0.1)

# How far one augmented copy may differ. No flips: a mirrored 2 is not a 2.
MAX_ROTATION_DEGREES = 12.0
MAX_SCALE_CHANGE = 0.12
MAX_SHIFT = 0.1  # share of the image's side


@dataclass(frozen=True)
class Digits:
    """The data set as it is in `digits.npz`; the three splits are indices into `images`."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    train: npt.NDArray[np.int64]
    calibration: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]

    def tensors(self, split: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return a split as images in [0, 1], float32 (N, 1, 32, 32), and labels, int64 (N,)."""
        images = torch.stack([resize(image) for image in self.images[split]])
        return images, torch.from_numpy(self.labels[split].astype(np.int64))


def read_digits() -> Digits:
    """Read the digits from scikit-learn, scale them to uint8 and split them, always in the same way."""
    source = load_digits()
    labels = source.target.astype(np.uint8)
    development, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_COUNT, stratify=labels, random_state=SPLIT_SEED
    )
    train, calibration = train_test_split(
        development,
        train_size=TRAIN_COUNT,
        test_size=CALIBRATION_COUNT,
        stratify=labels[development],
        random_state=SPLIT_SEED,
    )
    return Digits(
        images=np.round(source.images * 255 / SOURCE_MAXIMUM).astype(np.uint8),
        labels=labels,
        train=np.sort(train),
        calibration=np.sort(calibration),
        test=np.sort(test),
    )


def resize(image: npt.NDArray[np.uint8]) -> Tensor:
    """Enlarge one 8x8 image exactly as inference does: Pillow on uint8, then [0, 1], float32 (1, 32, 32)."""
    height, width = IMAGE_SIZE
    enlarged = Image.fromarray(image).resize((width, height), Image.Resampling[INTERPOLATION.upper()])
    return torch.from_numpy(np.asarray(enlarged, dtype=np.float32) / 255).unsqueeze(0)


def normalize(images: Tensor) -> Tensor:
    """Bring images in [0, 1] to what the model takes."""
    return (images - MEAN[0]) / STD[0]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift each image of a batch in [0, 1] a little; pixels from outside become background, 0."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * limit

    angle = torch.deg2rad(uniform(MAX_ROTATION_DEGREES))
    scale = 1 + uniform(MAX_SCALE_CHANGE)
    # affine_grid measures from -1 to 1, so the whole side is 2.
    shift_x, shift_y = uniform(2 * MAX_SHIFT), uniform(2 * MAX_SHIFT)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    transform = torch.stack(
        [torch.stack([cosine, -sine, shift_x], dim=1), torch.stack([sine, cosine, shift_y], dim=1)], dim=1
    )
    grid = functional.affine_grid(transform, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def prepare(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment and normalize one batch."""
    return normalize(augment(images, generator))


def write_assets(digits: Digits, model: nn.Module, test_top1: float) -> None:
    """Write the data set and the weights into the package."""
    ASSETS.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(ASSETS / "digits.npz", **vars(digits))
    save_weights(model, ASSETS / "digits.safetensors", name="demo:digits", seed=PLAN.seed, test_top1=test_top1)


def main() -> None:
    """Train, then either score the calibration split or score the test split once and write the files."""
    parser = argparse.ArgumentParser(description="Reproduce the data set and the weights of demo:digits.")
    parser.add_argument("--validate", action="store_true", help="score the calibration split and write nothing")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    digits = read_digits()
    started = time.perf_counter()
    model = train(digits_vit, *digits.tensors(digits.train), PLAN, prepare)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    if arguments.validate:
        images, labels = digits.tensors(digits.calibration)
        print(f"calibration top-1: {score_top1(model, normalize(images), labels):.2f} % of {CALIBRATION_COUNT}")
        return
    images, labels = digits.tensors(digits.test)
    test_top1 = score_top1(model, normalize(images), labels)
    write_assets(digits, model, test_top1)
    print(f"held-out top-1: {test_top1:.2f} % of {TEST_COUNT}")


if __name__ == "__main__":
    main()
