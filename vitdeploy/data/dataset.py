"""Images with labels: a folder (read one by one), an `.npz`, or the demo's digits.

What a folder looks like depends on the task, by the form of its labels:

    classes    CLASS/*.jpg                             one sub-folder per class
    masks      images/*.jpg  masks/*.png               a class for each pixel, by the same name
    depth      images/*.jpg  depth/*.npy or *.png      a depth for each pixel, by the same name
    boxes      images/*.jpg  annotations.json          COCO's JSON
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from vitdeploy.data.labels import Label
from vitdeploy.errors import DataError
from vitdeploy.session import Array

Split = Literal["calibration", "evaluation"]
Form = Literal["classes", "masks", "depth", "boxes"]

_SHUFFLE_SEED = 0


@dataclass(frozen=True)
class Sample:
    """One image at the model's size, uint8 (channels, height, width), and what is true about it where that is known."""

    image: Array
    label: Label | None


class Dataset(Protocol):
    """Samples in one fixed, shuffled order: the first few are of all classes, so a limit still represents the whole.

    Attributes:
        spec: DATA as the user wrote it.
        digest: sha256 of what the samples are made from; equal data, equal digest, wherever it lies.
        labelled: whether every sample has a label.
        classes: class names in the order of the indices, where the data names them.
        skipped: images that could not be read so far, with the reason.
    """

    spec: str
    digest: str
    labelled: bool
    classes: tuple[str, ...] | None
    skipped: list[str]

    def __len__(self) -> int:
        """Samples, damaged ones included."""

    def __iter__(self) -> Iterator[Sample]:
        """Read the samples one by one.

        Raises:
            DataError: more than 1 % of the images (and more than one) are damaged.
        """


def batches(dataset: Dataset, size: int, limit: int | None = None) -> Iterator[tuple[Array, list[Label]]]:
    """Batches of `size` samples (the last may be smaller): uint8 NCHW, and their labels (-1 where there is none).

    Raises:
        DataError: not one sample could be read.
    """
    images: list[Array] = []
    labels: list[Label] = []
    seen = 0
    for sample in dataset:
        if limit is not None and seen >= limit:
            break
        seen += 1
        images.append(sample.image)
        labels.append(-1 if sample.label is None else sample.label)
        if len(images) == size:
            yield np.stack(images), labels
            images, labels = [], []
    if images:
        yield np.stack(images), labels
    if not seen and limit != 0:
        raise DataError(f"{dataset.spec}: no sample could be read", fix="Check the files.")


def shuffled(count: int) -> list[int]:
    """The fixed order in which datasets are read."""
    return [int(i) for i in np.random.default_rng(_SHUFFLE_SEED).permutation(count)]
