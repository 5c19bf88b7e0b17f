"""Encoded images inside of larger files: what shards of every kind share."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np

from vitdeploy.data._folder import name_classes
from vitdeploy.data.class_names import are_made_up, match
from vitdeploy.data.dataset import Order, Sample, refuse_damage, shuffle
from vitdeploy.data.images import decode_image
from vitdeploy.data.preprocess import to_pixels
from vitdeploy.errors import DataError
from vitdeploy.escaping import replace_undecodable
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

NO_LABEL = -1
_MAX_DIGITS = 18
"""Of a class index in words: it fits into int64."""


class EncodedDataset(ABC):
    """A Dataset over encoded images, decoded one at a time.

    Args:
        spec: DATA as the user wrote it.
        names: of the samples.
        labels: int64 (samples,), class indices of the model; None if a sample has none.
        preprocess: the model's preprocessing.
        classes: class names in the order of the indices, if the data names them.
        order: how its classes became indices.
        digest: of the data.
    """

    def __init__(
        self,
        spec: str,
        names: Sequence[str],
        labels: Array | None,
        preprocess: Preprocess,
        classes: tuple[str, ...] | None,
        order: Order,
        digest: str,
    ) -> None:
        self.spec = spec
        self.labelled = labels is not None
        self.classes = classes
        self.order = order
        self.digest = digest
        self.skipped: list[str] = []
        self.further: tuple[str, ...] = ()
        self._names = names
        self._labels = labels
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Sample]:
        return self.read()

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
        """Read the samples at these places of the fixed order; see `Dataset`."""
        self.skipped.clear()
        indices = shuffle(len(self))[start:stop]
        for place, index, content in zip(count(start), indices, self._read_contents(indices)):
            try:
                image = decode_image(self._describe_place(index), io.BytesIO(_require(content)))
                pixels = to_pixels(image, self._preprocess)
            except DataError as error:
                self.skipped.append(error.message)
                refuse_damage(self.spec, self.skipped, len(self))
                continue
            label = None if self._labels is None else int(self._labels[index])
            yield Sample(pixels, label, replace_undecodable(self._names[index]), place=place)

    @abstractmethod
    def _read_contents(self, indices: Sequence[int]) -> Iterator[bytes | DataError]:
        """Yield the encoded image of each sample; an error in the place of one that cannot be read."""

    @abstractmethod
    def _describe_place(self, index: int) -> str:
        """Return the file and the place in it, for messages."""


def _require(content: bytes | DataError) -> bytes:
    if isinstance(content, DataError):
        raise content
    return content


def match_labels(
    spec: str, labels: Array, own: tuple[str, ...] | None, names: tuple[str, ...] | None, classes: int | None
) -> tuple[Order, Array, tuple[str, ...] | None]:
    """Return how the labels of shards became class indices of the model, these, and the class names in their order.

    Names in the data are matched with those of the model, or are class indices, as the names of folders are: Hugging
    Face sorts folders as text, so that `10` comes before `2`. Else the labels themselves are class indices.

    Args:
        spec: DATA as the user wrote it.
        labels: int64 (samples,).
        own: the names that the data has for its classes.
        names: the model's class names.
        classes: the number of the model's classes, if it is known.

    Raises:
        DataError: a class is not one of the model's.
    """
    used = np.unique(labels)
    called = [] if own is None else [own[index] for index in used]
    are_numbers = bool(called) and all(map(_is_number, called))
    if (
        own is not None and names is not None and not are_made_up(names)
        and (set(called) <= set(names) or not (are_numbers or are_made_up(own)))
    ):  # fmt: skip
        fix = f"If the model has the classes of the data, export it with --labels FILE: {', '.join(own[:3])}, …"
        places = match(f"{spec}: class", called, names, fix)
        return "labels", _look_up(labels, used, [places[name] for name in called]), names
    if own is not None and are_numbers:
        labels = _look_up(labels, used, [int(name) for name in called])
        own = name_classes({name: int(name) for name in own}) if all(map(_is_number, own)) else None
    most, highest = classes if names is None else len(names), int(labels.max())
    if most is not None and highest >= most:
        raise DataError(
            f"{spec}: its labels go up to {highest}, but the model has {most} classes",
            fix="Use the model's class indices.",
        )
    return "indices", labels, own


def _is_number(name: str) -> bool:
    return name.isdecimal() and len(name) <= _MAX_DIGITS


def _look_up(labels: Array, used: Array, places: Sequence[int]) -> Array:
    """Return the class of each label; `used` are all labels in ascending order, and `places` their classes."""
    return np.array(places, np.int64)[np.searchsorted(used, labels)]
