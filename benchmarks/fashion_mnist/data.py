"""Read Fashion-MNIST from its Debian package and write the two sets that `vitdeploy` takes.

    python -m benchmarks.fashion_mnist.data [-o DIR]

`test.npz` holds the 10,000 test images. `calibration.npz` holds 256 images of the training split, spread evenly over
the classes. Both hold `images`, uint8 (N, 28, 28), and `labels`, uint8 (N,).
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

PACKAGE = "dataset-fashion-mnist"
PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEFAULT_OUTPUT = Path("build/fashion_mnist")
PREFIXES = {"train": "train", "test": "t10k"}

# An IDX file opens with two zero bytes, the element type and the number of dimensions, then one big-endian size each.
IDX_UINT8 = 0x08

CLASSES = 10
CALIBRATION_COUNT = 256
CALIBRATION_SEED = 0


class LabelledImages(NamedTuple):
    """Images, uint8 (N, 28, 28), and their classes, uint8 (N,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read one gzipped IDX file of uint8.

    Raises:
        FileNotFoundError: the Debian package is not installed.
        ValueError: it is no such file.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        message = f"{path} is missing: install the Debian package with `apt-get install {PACKAGE}`"
        raise FileNotFoundError(message) from error
    if content[:3] != bytes([0, 0, IDX_UINT8]):
        raise ValueError(f"{path} is not an IDX file of uint8: reinstall the Debian package {PACKAGE}")
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_split(split: Literal["train", "test"], folder: Path = PACKAGE_FOLDER) -> LabelledImages:
    """Read the 60,000 training images or the 10,000 test images."""
    prefix = PREFIXES[split]
    return LabelledImages(
        images=read_idx(folder / f"{prefix}-images-idx3-ubyte.gz"),
        labels=read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz"),
    )


def draw_calibration(train: LabelledImages, count: int = CALIBRATION_COUNT) -> LabelledImages:
    """Draw the calibration images with a fixed seed, as evenly from the classes as their number allows."""
    random = np.random.default_rng(CALIBRATION_SEED)
    quotas = [len(part) for part in np.array_split(np.arange(count), CLASSES)]
    chosen = [
        random.choice(np.flatnonzero(train.labels == label), size=quota, replace=False)
        for label, quota in enumerate(quotas)
    ]
    indices = np.sort(np.concatenate(chosen))
    return LabelledImages(train.images[indices], train.labels[indices])


def save_sets(folder: Path) -> dict[str, LabelledImages]:
    """Write `test.npz` and `calibration.npz` into a folder; return what they hold by name."""
    sets = {"test": read_split("test"), "calibration": draw_calibration(read_split("train"))}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in sets.items():
        np.savez_compressed(folder / f"{name}.npz", images=images, labels=labels)
    return sets


def main() -> None:
    """Write both sets and print where they are."""
    parser = argparse.ArgumentParser(description="Write Fashion-MNIST as test.npz and calibration.npz.")
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_OUTPUT, help=f"default: {DEFAULT_OUTPUT}")
    output: Path = parser.parse_args().output

    try:
        sets = save_sets(output)
    except FileNotFoundError as error:
        parser.exit(1, f"{error}\n")
    for name, (images, _) in sets.items():
        print(f"{output / name}.npz: {len(images)} images")


if __name__ == "__main__":
    main()
