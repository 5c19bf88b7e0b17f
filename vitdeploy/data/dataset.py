"""Datasets of images with labels: a folder (read one by one), shards, an `.npz`, or the demo's digits.

The layout of a folder depends on the form of the labels, which the task decides:

    classes    CLASS/*.jpg                             one sub-folder per class
    classes    *.tar                                   shards in the form of WebDataset: 1.jpg beside 1.cls
    classes    *.parquet                               shards in the form of Hugging Face datasets: image, label
    classes    CLASS/CLIP/*.jpg                        for a model of clips: a folder of frames for each
    masks      images/*.jpg  masks/*.png               a class for each pixel, by the same name
    depth      images/*.jpg  depth/*.npy or *.png      a depth for each pixel, by the same name
    boxes      images/*.jpg  annotations.json          COCO's JSON
    instances  images/*.jpg  annotations.json          COCO's JSON, with a mask for each object
    keypoints  images/*.jpg  annotations.json          COCO's JSON, with one person in each image
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np

from vitdeploy.data.labels import Label
from vitdeploy.errors import DataError
from vitdeploy.session import Array

Split = Literal["calibration", "evaluation"]
Form = Literal["classes", "masks", "depth", "boxes", "instances", "keypoints"]
Order = Literal["labels", "indices", "alphabet"]
"""The way in which the data names its classes: by the model's labels, by class indices, or not at all."""

_SHUFFLE_SEED = 0
_MAX_DAMAGED_SHARE = 0.01


@dataclass(frozen=True)
class Sample:
    """One image at the model's size, uint8 (channels, height, width), its label if it has one, and its name.

    Of a clip it is (frames, channels, height, width). The name is its path below the data, or its number in arrays.
    """

    image: Array
    label: Label | None
    name: str = ""
    further: Mapping[str, Array] = field(default_factory=dict)
    """The values of the inputs beside the image, by name."""
    place: int = 0
    """Its place in the order in which the dataset is read. Damaged samples have places too."""


class NamedBatch(NamedTuple):
    """Images of the model's size, uint8 NCHW, their labels (-1 without a label), and their names.

    `further` has the values of the inputs beside the image, by name: one for each image.
    """

    images: Array
    labels: list[Label]
    names: list[str]
    further: Mapping[str, Array] = {}

    def digests(self) -> list[int]:
        """Return the digest of each sample, see `digest_image`: of its image, and of its other inputs."""
        if not self.further:
            return [digest_image(image) for image in self.images]
        return [
            digest_image(image, *(self.further[name][i] for name in sorted(self.further)))
            for i, image in enumerate(self.images)
        ]


class Dataset(Protocol):
    """Samples in one fixed, shuffled order, so that the first few already come from all classes.

    Attributes:
        spec: DATA as the user wrote it.
        digest: sha256 of the data that the samples are made from. Equal data has an equal digest in every place.
        labelled: True if every sample has a label.
        classes: class names in the order of the indices, if the data names them.
        order: how its classes became indices. "alphabet" is an assumption: folders in the order of their names.
        skipped: one message for each image that could not be read so far.
        further: the inputs beside the image that the samples have values of.
    """

    spec: str
    digest: str
    labelled: bool
    classes: tuple[str, ...] | None
    order: Order
    skipped: list[str]
    further: tuple[str, ...]

    def __len__(self) -> int:
        """Count the samples, including damaged ones."""

    def __iter__(self) -> Iterator[Sample]:
        """Read all samples one by one; see `read`."""

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
        """Read the samples at the places from `start` to `stop` of the fixed order, one by one.

        Raises:
            DataError: more than 1 % of the images of the whole dataset (and more than one) are damaged.
        """


def batches(dataset: Dataset, size: int, limit: int | None = None) -> Iterator[tuple[Array, list[Label]]]:
    """Yield batches of `size` samples: uint8 NCHW, and their labels (-1 without a label). The last may be smaller.

    Raises:
        DataError: not one sample could be read.
    """
    return ((batch.images, batch.labels) for batch in named_batches(dataset, size, limit))


def named_batches(dataset: Dataset, size: int, limit: int | None = None) -> Iterator[NamedBatch]:
    """Yield what `batches` yields, with the names of the samples."""
    samples: list[Sample] = []
    count = 0
    for sample in dataset:
        if limit is not None and count >= limit:
            break
        count += 1
        samples.append(sample)
        if len(samples) == size:
            yield stack(samples)
            samples = []
    if samples:
        yield stack(samples)
    if not count and limit != 0:
        raise DataError(f"{dataset.spec}: no sample could be read", fix="Check the files.")


def stack(samples: Sequence[Sample]) -> NamedBatch:
    """Return samples as a batch."""
    labels = [-1 if sample.label is None else sample.label for sample in samples]
    further = {name: np.stack([sample.further[name] for sample in samples]) for name in samples[0].further}
    images = np.stack([sample.image for sample in samples])
    return NamedBatch(images, labels, [sample.name for sample in samples], further)


def refuse_damage(spec: str, skipped: Sequence[str], count: int) -> None:
    """Raise a DataError if too many of `count` images are damaged. `skipped` has a message for each that is."""
    if len(skipped) > max(1, _MAX_DAMAGED_SHARE * count):
        raise DataError(
            f"{spec}: {len(skipped)} of {count} images cannot be read. The last one: {skipped[-1]}",
            fix="Replace or remove the damaged images.",
        )


def digest_image(image: Array, *further: Array) -> int:
    """Return 64 bits of a digest of what a model sees, by which equal samples are recognised."""
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8)
    for value in further:
        digest.update(np.ascontiguousarray(value).data)
    return int.from_bytes(digest.digest(), "little")


def shuffle(count: int) -> list[int]:
    """Return the numbers below `count` in the fixed order in which every dataset is read."""
    return [int(i) for i in np.random.default_rng(_SHUFFLE_SEED).permutation(count)]
