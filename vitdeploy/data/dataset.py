"""Images with labels: a folder (read one by one), an `.npz`, or the demo's digits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from vitdeploy.errors import DataError
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

Split = Literal["calibration", "evaluation"]

_DEMO = "demo:digits"
_DEMO_SPLIT: dict[Split, str] = {"calibration": "calibration", "evaluation": "test"}
_FORMS = "Give a folder with one sub-folder per class, an .npz with images and labels, or demo:digits."
_SHUFFLE_SEED = 0


@dataclass(frozen=True)
class Sample:
    """One image at the model's size, uint8 (channels, height, width), and its class index where it has one."""

    image: Array
    label: int | None


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


def open_dataset(
    spec: str, preprocess: Preprocess, *, labels: tuple[str, ...] | None, need_labels: bool, split: Split
) -> Dataset:
    """The dataset that `spec` (DATA of the command line) names.

    Args:
        spec: a folder, an `.npz` file, or `demo:digits`.
        preprocess: what the model wants; its size is given to every image, unless an array is of that size already.
        labels: the model's class names; folders are matched with them, and label indices checked against them.
        need_labels: whether data without labels is an error.
        split: which part of `demo:digits`; other data has one part.

    Raises:
        DataError: the data is missing, empty, of another form, or has no labels where they are needed.
    """
    dataset = _opened(spec, preprocess, labels, split)
    if need_labels and not dataset.labelled:
        raise DataError(
            f"{spec} has no labels", fix="Put the images into one sub-folder per class, or add labels to the .npz."
        )
    return dataset


def _opened(spec: str, preprocess: Preprocess, labels: tuple[str, ...] | None, split: Split) -> Dataset:
    # They need shuffled() of this module, and Pillow.
    from vitdeploy.data._arrays import ArrayDataset, open_npz, read_npz
    from vitdeploy.data._folder import open_folder

    if spec == _DEMO:
        with resources.as_file(resources.files("vitdeploy") / "assets" / "digits.npz") as file:
            arrays = read_npz(file)
        chosen = arrays[_DEMO_SPLIT[split]]
        images, truth = arrays["images"][chosen], arrays["labels"][chosen]
        return ArrayDataset(spec, images, truth, preprocess, classes=tuple("0123456789"))
    path = Path(spec).expanduser()
    if path.is_dir():
        return open_folder(spec, path, preprocess, labels)
    if path.suffix == ".npz" and path.is_file():
        return open_npz(spec, path, preprocess, labels)
    what = "there is no" if not path.exists() else "it is no dataset:"
    raise DataError(f"{what} {spec}{did_you_mean(spec, [_DEMO])}", fix=_FORMS)


def batches(dataset: Dataset, size: int, limit: int | None = None) -> Iterator[tuple[Array, list[int]]]:
    """Batches of `size` samples (the last may be smaller): uint8 NCHW, and their labels (-1 where there is none).

    Raises:
        DataError: not one sample could be read.
    """
    images: list[Array] = []
    labels: list[int] = []
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
        raise DataError(f"{dataset.spec}: no sample could be read", fix=_FORMS)


def shuffled(count: int) -> list[int]:
    """The fixed order in which datasets are read."""
    return [int(i) for i in np.random.default_rng(_SHUFFLE_SEED).permutation(count)]
