"""Samples in units: the images that the reference answers at once, aligned to places in the order of the data.

The units do not depend on where a part of the data begins, nor on images that are left out. So an evaluation in parts
runs the same batches as a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np

from vitdeploy.artifact import Manifest
from vitdeploy.data.dataset import Dataset, NamedBatch, Sample, stack
from vitdeploy.session import Array

_TURN_BYTES = 8 << 20  # 55 images of 3 x 224 x 224; a limit in bytes bounds memory for any image size
_REFERENCE_IMAGES = 16  # more are hardly faster on a CPU
_EVAL_BATCH = 1  # for a range of batch sizes: edge devices run one image at a time


@dataclass(frozen=True)
class Unit:
    """Neighbouring samples, their places in the data, and the batches in which the artifact answers them."""

    batch: NamedBatch
    spans: tuple[slice, ...]
    places: tuple[int, ...]

    def parts(self) -> Iterator[NamedBatch]:
        """Yield the batches of the artifact."""
        for span in self.spans:
            further: Mapping[str, Array] = {name: value[span] for name, value in self.batch.further.items()}
            yield NamedBatch(self.batch.images[span], self.batch.labels[span], self.batch.names[span], further)


def batch_size(manifest: Manifest) -> int:
    """Return the batch size that an artifact is evaluated with."""
    batch = manifest.recipe.target.batch
    return batch.min if batch.static else _EVAL_BATCH


def unit_size(manifest: Manifest) -> int:
    """Return the number of places of a unit: a multiple of the batch size, and bounded in bytes."""
    size = batch_size(manifest)
    fitting = _TURN_BYTES // int(np.prod(manifest.preprocess.sample_shape))
    return size * max(1, min(_REFERENCE_IMAGES, fitting) // size)


def read_units(
    dataset: Dataset, manifest: Manifest, start: int = 0, stop: int | None = None, most: int | None = None
) -> Iterator[Unit]:
    """Yield the samples at the places from `start` to `stop`, and at most `most` of them, in units."""
    size, unit = batch_size(manifest), unit_size(manifest)
    for _, members in groupby(islice(dataset.read(start, stop), most), key=lambda sample: sample.place // unit):
        samples = list(members)
        yield Unit(stack(samples), _split(samples, size), tuple(sample.place for sample in samples))


def _split(samples: list[Sample], size: int) -> tuple[slice, ...]:
    counts = [len(list(members)) for _, members in groupby(samples, key=lambda sample: sample.place // size)]
    ends = np.cumsum(counts).tolist()
    return tuple(slice(end - count, end) for end, count in zip(ends, counts, strict=True))


def group_turns(units: Iterator[Unit]) -> Iterator[list[Unit]]:
    """Group units into turns: one side answers all units of a turn, then the other side does.

    After a run, an engine's threads spin for some milliseconds (25 ms in ONNX Runtime). If the sides took turns after
    every image, each would compete with the spinning threads of the other and be ten times slower.
    """
    turn: list[Unit] = []
    size = 0
    for unit in units:
        turn.append(unit)
        size += unit.batch.images.nbytes
        if size >= _TURN_BYTES:
            yield turn
            turn, size = [], 0
    if turn:
        yield turn
