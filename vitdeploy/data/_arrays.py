"""Images in an `.npz`: uint8 `images` (NHWC or NHW) and integer `labels`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitdeploy.data.array_files import read_npz
from vitdeploy.data.dataset import Order, Sample, shuffle
from vitdeploy.data.preprocess import add_mask, channels_first, order_channels, to_pixels
from vitdeploy.errors import DataError
from vitdeploy.frozen import replace
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

_FIX = "Save it with numpy.savez(path, images=uint8 NHWC or NHW, labels=integers)."


class ArrayDataset:
    """A Dataset over arrays. Images of the model's size and channels are used as they are, others are preprocessed."""

    def __init__(
        self, spec: str, images: Array, labels: Array | None, preprocess: Preprocess, classes: tuple[str, ...] | None
    ) -> None:
        self.spec = spec
        self.labelled = labels is not None
        self.classes = classes
        self.order: Order = "indices"
        self.skipped: list[str] = []
        self._images = images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
        self._labels = labels
        self._preprocess = preprocess
        self.digest = _digest(images, labels)

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Sample]:
        for index in shuffle(len(self)):
            label = int(self._labels[index]) if self._labels is not None else None
            yield Sample(self._pixels(self._images[index]), label, f"image {index}")

    def _pixels(self, image: Array) -> Array:
        if image.shape[:2] != self._preprocess.size:
            return to_pixels(image, self._preprocess)
        if (image.ndim == 2) == (self._preprocess.channels == 1):
            return add_mask(order_channels(channels_first(image), self._preprocess), self._preprocess)
        # Only grey or colour has to be changed, so nothing is resized or cropped.
        exact = replace(self._preprocess, resize="exact", crop_pct=1.0, resize_to=None, mask=False)
        return add_mask(to_pixels(image, exact), self._preprocess)


def open_npz(spec: str, path: Path, preprocess: Preprocess, names: tuple[str, ...] | None) -> ArrayDataset:
    """Open the dataset in `path`. Check the label indices against the model's class `names`, if they are known.

    Raises:
        DataError: the file is damaged, has pickled objects, or arrays of another type or shape.
    """
    arrays = read_npz(path, _FIX)
    if "images" not in arrays:
        raise DataError(f"{spec} has no array `images`; its arrays: {', '.join(arrays) or 'none'}", fix=_FIX)
    images, labels = arrays["images"], arrays.get("labels")
    has_channels = images.ndim == 4 and images.shape[3] in (1, 3)
    if images.dtype != np.uint8 or not (images.ndim == 3 or has_channels):
        raise DataError(f"{spec}: its images are {images.dtype} {images.shape}, not uint8 NHWC or NHW", fix=_FIX)
    if not images.size:
        raise DataError(f"{spec} has no images in it", fix=_FIX)
    if labels is not None:
        _check_labels(spec, labels, len(images), names)
    return ArrayDataset(spec, images, labels, preprocess, classes=None)


def _check_labels(spec: str, labels: Array, count: int, names: tuple[str, ...] | None) -> None:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{spec}: its labels are {labels.dtype} {labels.shape}, not {count} integers", fix=_FIX)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (names is not None and high >= len(names)):
        limit = f"the model has {len(names)} classes" if names is not None else "an index is at least 0"
        raise DataError(
            f"{spec}: its labels go from {low} to {high}, but {limit}", fix="Use the model's class indices."
        )


def _digest(images: Array, labels: Array | None) -> str:
    sha = hashlib.sha256()
    for name, array in (("images", images), ("labels", labels)):
        if array is not None:
            sha.update(f"{name}:{array.dtype}:{array.shape};".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
