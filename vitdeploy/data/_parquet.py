"""Images in `.parquet` files, in the form of Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vitdeploy.data._digest import SampleDigest
from vitdeploy.data._encoded import NO_LABEL, EncodedDataset, match_labels
from vitdeploy.data._parquet_files import ParquetShard
from vitdeploy.data.dataset import Order
from vitdeploy.errors import DataError
from vitdeploy.limits import MAX_IMAGE_BYTES
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

_WINDOW_BYTES = 256 << 20
"""Of encoded images that are held to be read in the order of the data: 2,500 photographs. A row group can only be read
as a whole, so each window reads every file once: 6.7 GB of ImageNet 26 times."""
_FIRST_WINDOW, _GROWTH = 64, 4  # images: most uses need few
_EMBED = (
    "Store the images in the file, before to_parquet: dataset.with_format('arrow').map("
    "datasets.table.embed_table_storage, batched=True)."
)
_FIX = "Give each row a class index from 0 on; the rows of a test split often have none."


class ParquetDataset(EncodedDataset):
    """A Dataset over the rows of Parquet files."""

    def __init__(
        self,
        spec: str,
        shards: Sequence[ParquetShard],
        names: Sequence[str],
        sizes: Array,
        labels: Array | None,
        preprocess: Preprocess,
        classes: tuple[str, ...] | None,
        order: Order,
        digest: str,
    ) -> None:
        super().__init__(spec, names, labels, preprocess, classes, order, digest)
        self._shards = shards
        self._sizes = sizes
        self._places = [(shard, group) for shard in shards for group in range(len(shard.groups))]
        self._starts = np.cumsum([0, *(shard.groups[group] for shard, group in self._places)])

    def _read_contents(self, indices: Sequence[int]) -> Iterator[bytes | DataError]:
        for window in self._split(indices):
            contents = self._read_window(window)
            for index in window:
                yield contents.pop(index)

    def _split(self, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        """Split the order into windows that grow up to `_WINDOW_BYTES`."""
        start, count = 0, _FIRST_WINDOW
        while start < len(indices):
            window = indices[start : start + count]
            sums = np.cumsum(self._sizes[window])
            window = window[: max(1, int(np.searchsorted(sums, _WINDOW_BYTES, side="right")))]
            yield window
            start, count = start + len(window), count * _GROWTH

    def _read_window(self, window: Sequence[int]) -> dict[int, bytes | DataError]:
        """Read the images of a window, each row group once."""
        contents: dict[int, bytes | DataError] = {}
        ordered = np.sort(np.array(window))
        places = np.searchsorted(self._starts, ordered, side="right") - 1
        for place in np.unique(places):
            start = int(self._starts[place])
            shard, group = self._places[place]
            rows = (ordered[places == place] - start).tolist()
            for row, content in shard.read_images(group, rows):
                index = start + row
                contents[index] = _check(self._describe_place(index), content)
        for index in window:  # fewer rows than the footer says
            contents.setdefault(index, DataError(f"{self._describe_place(index)} is missing", fix="Write it again."))
        return contents

    def _describe_place(self, index: int) -> str:
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        shard, group = self._places[place]
        first = sum(shard.groups[:group])
        return f"{shard.path}: row {first + index - int(self._starts[place])}"


def open_parquet(
    spec: str,
    files: Sequence[Path],
    preprocess: Preprocess,
    names: tuple[str, ...] | None,
    classes: int | None,
    *,
    need_labels: bool,
) -> ParquetDataset:
    """Open the images in Parquet files. The order of the data is that of the files, and of their rows.

    Args:
        spec: DATA as the user wrote it.
        files: the files.
        preprocess: the model's preprocessing.
        names: the model's class names, which those in the files are matched with.
        classes: the number of the model's classes, if it is known.
        need_labels: True if a row without a label is an error.

    Raises:
        DataError: a file is damaged, has no images or no column of them, or labels are missing or wrong.
    """
    shards = [ParquetShard(path, need_labels=need_labels) for path in files]
    empty = next((shard for shard in shards if not sum(shard.groups)), None)
    if empty is not None:
        raise DataError(f"{empty.path} has no rows in it", fix="Remove the file, or write it again.")
    own = shards[0].columns.classes
    other = next((shard for shard in shards if shard.columns.classes != own), None)
    if other is not None and need_labels:
        raise DataError(f"{shards[0].path} and {other.path} name their classes differently", fix="Write both again.")
    stored, paths = _read_rows(shards)
    labels: Array | None = None
    order: Order = "indices"
    known: tuple[str, ...] | None = None
    if other is None and all(shard.columns.label is not None for shard in shards):
        labels = _check_labels(shards, stored, own, need_labels=need_labels)
    if labels is not None:
        order, labels, known = match_labels(spec, labels, own, names, classes)
    sample_names = [f"row {number}" for number in range(len(paths))]
    if len(set(paths)) == len(paths) and None not in paths:
        sample_names = [str(path) for path in paths]
    sizes, digest = _digest(shards, sample_names, labels)
    if not sizes.any():
        raise DataError(f"{spec} has no images, only paths", fix=_EMBED)
    return ParquetDataset(spec, shards, sample_names, sizes, labels, preprocess, known, order, digest)


def _read_rows(shards: Sequence[ParquetShard]) -> tuple[list[int | None], list[str | None]]:
    labels: list[int | None] = []
    paths: list[str | None] = []
    for shard in shards:
        own_labels, own_paths = shard.read_labels()
        labels += own_labels
        paths += own_paths
    return labels, paths


def _check_labels(
    shards: Sequence[ParquetShard], stored: Sequence[int | None], own: tuple[str, ...] | None, *, need_labels: bool
) -> Array | None:
    """Return the labels as an array; None if some are missing or wrong, and none are needed.

    Raises:
        DataError: one is missing, or has no name although the file names its classes.
    """
    first = next((number for number, label in enumerate(stored) if label is None or label == NO_LABEL), None)
    most = len(own) if own is not None else np.iinfo(np.int64).max
    wrong = next((number for number, label in enumerate(stored) if label is not None and not 0 <= label < most), None)
    if not need_labels and (first is not None or wrong is not None):
        return None
    if first is not None:
        raise DataError(f"{_describe_row(shards, first)} has no label", fix=_FIX)
    if wrong is not None:
        limit = f", and {most} classes have names" if own is not None else ""
        raise DataError(f"{_describe_row(shards, wrong)} has the label {stored[wrong]}{limit}", fix=_FIX)
    return np.array(stored, np.int64)


def _describe_row(shards: Sequence[ParquetShard], number: int) -> str:
    for shard in shards:
        count = sum(shard.groups)
        if number < count:
            return f"{shard.path}: row {number}"
        number -= count
    raise IndexError(number)


def _digest(shards: Sequence[ParquetShard], names: Sequence[str], labels: Array | None) -> tuple[Array, str]:
    """Return the size of each image, and the digest of a folder with the same images, names and labels."""
    digest = SampleDigest()
    sizes = np.zeros(len(names), np.int64)
    number = 0
    for shard in shards:
        for group in range(len(shard.groups)):
            for _, content in shard.read_images(group):
                label = None if labels is None else int(labels[number])
                sizes[number] = len(content or b"")
                digest.add(names[number], int(sizes[number]), label, () if content is None else (content,))
                number += 1
    return sizes, digest.hexdigest()


def _check(where: str, content: bytes | None) -> bytes | DataError:
    if content is None:
        return DataError(f"{where} has no image", fix=_EMBED)
    if len(content) > MAX_IMAGE_BYTES.value:
        return DataError(f"{where} has {len(content):,} bytes", fix=MAX_IMAGE_BYTES.fix)
    return content
