"""Images in an `.npz`: uint8 `images` (NHWC or NHW), or `clips` with an axis of frames; and integer `labels`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vitdeploy.data.array_files import read_npz
from vitdeploy.data.dataset import Order, Sample, shuffle
from vitdeploy.data.example_inputs import FurtherInput, fit_values
from vitdeploy.data.frames import check_frames, choose_from_array
from vitdeploy.data.preprocess import add_mask, channels_first, normalize, order_channels, to_pixels
from vitdeploy.errors import DataError
from vitdeploy.frozen import replace
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

_FIX = "Save it with numpy.savez(path, images=uint8 NHWC or NHW, labels=integers)."
_IMAGE_AXES = 3  # height, width, channels
_CLIPS_FIX = "Save it with numpy.savez(path, clips=uint8 (clips, frames, height, width, 3), labels=integers)."


class ArrayDataset:
    """A Dataset over arrays. Images of the model's size and channels are used as they are, others are preprocessed."""

    def __init__(
        self,
        spec: str,
        images: Array,
        labels: Array | None,
        preprocess: Preprocess,
        classes: tuple[str, ...] | None,
        further: Mapping[str, Array] | None = None,
    ) -> None:
        self.spec = spec
        self.labelled = labels is not None
        self.classes = classes
        self.order: Order = "indices"
        self.skipped: list[str] = []
        grey_axes = 4 + (preprocess.frames is not None)
        self._images = images[..., 0] if images.ndim == grey_axes and images.shape[-1] == 1 else images
        self._labels = labels
        self._preprocess = preprocess
        self._further = dict(further or {})
        self.further = tuple(self._further)
        self.digest = _digest({"images": images, "labels": labels, **self._further})

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Sample]:
        return self.read()

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
        """Read the samples at these places of the fixed order; see `Dataset`."""
        for place, index in enumerate(shuffle(len(self))[start:stop], start):
            label = int(self._labels[index]) if self._labels is not None else None
            further = {name: self._value(array[index]) for name, array in self._further.items()}
            yield Sample(self._sample(index), label, f"{self._preprocess.sample_word} {index}", further, place)

    def _value(self, value: Array) -> Array:
        """Return the value of another input; an image is prepared as the first one is."""
        is_image = value.dtype == np.uint8 and value.ndim == _IMAGE_AXES
        return normalize(self._pixels(value), self._preprocess) if is_image else value

    def _sample(self, index: int) -> Array:
        frames = self._preprocess.frames
        if frames is None:
            return self._pixels(self._images[index])
        clip = choose_from_array(f"{self.spec}: clip {index}", self._images[index], frames)
        return np.stack([self._pixels(frame) for frame in clip])

    def _pixels(self, image: Array) -> Array:
        if image.shape[:2] != self._preprocess.size:
            return to_pixels(image, self._preprocess)
        if (image.ndim == 2) == (self._preprocess.channels == 1):
            return add_mask(order_channels(channels_first(image), self._preprocess), self._preprocess)
        # Only grey or colour has to be changed, so nothing is resized or cropped.
        exact = replace(self._preprocess, resize="exact", crop_pct=1.0, resize_to=None, mask=False)
        return add_mask(to_pixels(image, exact), self._preprocess)


def open_npz(
    spec: str, path: Path, preprocess: Preprocess, names: tuple[str, ...] | None, inputs: Sequence[FurtherInput] = ()
) -> ArrayDataset:
    """Open the dataset in `path`. Check the label indices against the model's class `names`, if they are known.

    Raises:
        DataError: the file is damaged, has pickled objects, or arrays of another type or shape.
    """
    name, axes, fix = ("images", 3, _FIX) if preprocess.frames is None else ("clips", 4, _CLIPS_FIX)
    arrays = read_npz(path, fix)
    if name not in arrays:
        raise DataError(f"{spec} has no array `{name}`; its arrays: {', '.join(arrays) or 'none'}", fix=fix)
    images, labels = arrays[name], arrays.get("labels")
    has_channels = images.ndim == axes + 1 and images.shape[-1] in (1, 3)
    if images.dtype != np.uint8 or not (images.ndim == axes or has_channels):
        form = "NHWC or NHW" if preprocess.frames is None else "(clips, frames, height, width, 3)"
        raise DataError(f"{spec}: its {name} are {images.dtype} {images.shape}, not uint8 {form}", fix=fix)
    if not images.size:
        raise DataError(f"{spec} has no {name} in it", fix=fix)
    if preprocess.frames is not None:
        check_frames(f"{spec}: each clip", images.shape[1], preprocess.frames)
    if labels is not None:
        _check_labels(spec, labels, len(images), names)
    further = {
        each.name: _read_values(spec, each, arrays[each.name], len(images), preprocess)
        for each in inputs
        if each.name in arrays
    }
    return ArrayDataset(spec, images, labels, preprocess, classes=None, further=further)


def _read_values(spec: str, each: FurtherInput, array: Array, count: int, preprocess: Preprocess) -> Array:
    """Return the values of another input for each sample; images that are still to be prepared stay uint8 NHWC."""
    is_images = array.dtype == np.uint8 and array.ndim == _IMAGE_AXES + 1 and array.shape[-1] == preprocess.channels
    if preprocess.frames is None and is_images and len(array) == count and each.takes_images(preprocess):
        return array
    return fit_values(spec, each, array, count)


def _check_labels(spec: str, labels: Array, count: int, names: tuple[str, ...] | None) -> None:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{spec}: its labels are {labels.dtype} {labels.shape}, not {count} integers", fix=_FIX)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (names is not None and high >= len(names)):
        limit = f"the model has {len(names)} classes" if names is not None else "an index is at least 0"
        raise DataError(
            f"{spec}: its labels go from {low} to {high}, but {limit}", fix="Use the model's class indices."
        )


def _digest(arrays: Mapping[str, Array | None]) -> str:
    sha = hashlib.sha256()
    for name, array in arrays.items():
        if array is not None:
            sha.update(f"{name}:{array.dtype}:{array.shape};".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
