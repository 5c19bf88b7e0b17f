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
from importlib import resources
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from vitdeploy.data.labels import Label
from vitdeploy.errors import DataError
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

Split = Literal["calibration", "evaluation"]
Form = Literal["classes", "masks", "depth", "boxes"]

_DEMO = "demo:digits"
_DEMO_SPLIT: dict[Split, str] = {"calibration": "calibration", "evaluation": "test"}
_FORMS: dict[Form, str] = {
    "classes": "Give a folder with one sub-folder per class, an .npz with images and labels, or demo:digits.",
    "masks": "Give a folder with images/ and, by the same names, masks/ of class indices (PNG).",
    "depth": "Give a folder with images/ and, by the same names, depth/ (.npy in metres, or 16-bit PNG).",
    "boxes": "Give a folder with images/ and annotations.json in COCO's form.",
}
_IMAGES = "images"
_BESIDE: dict[Form, str] = {"masks": "masks", "depth": "depth", "boxes": "annotations.json"}
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


def open_dataset(
    spec: str,
    preprocess: Preprocess,
    *,
    labels: tuple[str, ...] | None,
    need_labels: bool,
    split: Split,
    form: Form = "classes",
) -> Dataset:
    """The dataset that `spec` (DATA of the command line) names.

    Args:
        spec: a folder, an `.npz` file, or `demo:digits`.
        preprocess: what the model wants; its size is given to every image, unless an array is of that size already.
        labels: the model's class names; folders are matched with them, and label indices checked against them.
        need_labels: whether data without labels is an error.
        split: which part of `demo:digits`; other data has one part.
        form: of the labels; without a need for them, any folder of images serves.

    Raises:
        DataError: the data is missing, empty, of another form, or has no labels where they are needed.
    """
    dataset = _opened(spec, preprocess, labels, split, form if need_labels else "classes")
    if need_labels and not dataset.labelled:
        raise DataError(
            f"{spec} has no labels", fix="Put the images into one sub-folder per class, or add labels to the .npz."
        )
    return dataset


def _opened(spec: str, preprocess: Preprocess, labels: tuple[str, ...] | None, split: Split, form: Form) -> Dataset:
    # They need shuffled() of this module, and Pillow.
    from vitdeploy.data._arrays import ArrayDataset, open_npz, read_npz
    from vitdeploy.data._coco import open_boxes
    from vitdeploy.data._dense import open_depth, open_masks
    from vitdeploy.data._folder import open_folder

    path = Path(spec).expanduser()
    if form != "classes":
        if not path.is_dir() or not (path / _IMAGES).is_dir():
            what = f"there is no {spec}" if not path.exists() else f"{spec} has no folder images/ in it"
            raise DataError(what, fix=_FORMS[form])
        if form == "boxes":
            return open_boxes(spec, path, preprocess, labels)
        return (open_masks if form == "masks" else open_depth)(spec, path, preprocess)
    if spec == _DEMO:
        with resources.as_file(resources.files("vitdeploy") / "assets" / "digits.npz") as file:
            arrays = read_npz(file)
        chosen = arrays[_DEMO_SPLIT[split]]
        images, truth = arrays["images"][chosen], arrays["labels"][chosen]
        return ArrayDataset(spec, images, truth, preprocess, classes=tuple("0123456789"))
    if path.is_dir():
        path = path / _IMAGES if form_of(spec) != "classes" else path  # to calibrate, masks are no images
        return open_folder(spec, path, preprocess, labels)
    if path.suffix == ".npz" and path.is_file():
        return open_npz(spec, path, preprocess, labels)
    what = "there is no" if not path.exists() else "it is no dataset:"
    raise DataError(f"{what} {spec}{did_you_mean(spec, [_DEMO])}", fix=_FORMS["classes"])


def form_of(spec: str) -> Form:
    """The form that labels seem to have; of a folder with several, the first."""
    path = Path(spec).expanduser()
    found = [form for form, name in _BESIDE.items() if (path / _IMAGES).is_dir() and (path / name).exists()]
    return found[0] if found else "classes"


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
