"""The two models that answer the same samples, and their answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from vitdeploy import tasks
from vitdeploy.artifact import Manifest
from vitdeploy.data.dataset import Dataset, NamedBatch, named_batches
from vitdeploy.data.labels import Label
from vitdeploy.data.preprocess import to_input
from vitdeploy.errors import DataError
from vitdeploy.measure.samples import Outcomes
from vitdeploy.progress import Progress
from vitdeploy.recipe import InputForm
from vitdeploy.session import Array, Session
from vitdeploy.tasks import PerSample, Task

_TURN_BYTES = 8 << 20  # 55 images of 3 x 224 x 224; a limit in bytes bounds memory for any image size
_EVAL_BATCH = 1  # for a range of batch sizes: edge devices run one image at a time
_IMAGES = ""  # no input has this name
_MAX_FLIPS = 400  # kept while it runs; the best of them are shown


class Side(Protocol):
    """One of the two compared models. It runs here, or its answers were recorded on another machine."""

    finite: list[Array]

    def answer(
        self, images: Array, labels: Sequence[Label], size: int, further: Mapping[str, Array] | None = None
    ) -> PerSample:
        """Answer a batch of uint8 images, with the values of the other inputs; `size` is the batch size that runs."""

    def values(self) -> tasks.Values:
        """Return the statistics of all answered samples."""


@dataclass(frozen=True)
class Flipped:
    """A sample to which the two sides give different answers.

    Attributes:
        index: its place among all answered samples.
        name: its name.
        image: as the model sees it, uint8 (planes, height, width).
        answers: of the reference and of the deployed model.
    """

    index: int
    name: str
    image: Array
    answers: tuple[Array, Array]


@dataclass(frozen=True)
class AnsweredByBoth:
    """The outcomes of all samples, their names, and the first of those with different answers."""

    outcomes: Outcomes
    names: list[str]
    flips: list[Flipped]


def batch_size(manifest: Manifest) -> int:
    """Return the batch size that an artifact is evaluated with."""
    batch = manifest.recipe.target.batch
    return batch.min if batch.static else _EVAL_BATCH


def answer_all(
    sides: tuple[Side, Side], task: Task, dataset: Dataset, manifest: Manifest, limit: int | None, progress: Progress
) -> AnsweredByBoth:
    """Let both sides answer every sample."""
    size = batch_size(manifest)
    agreement: list[Array] = []
    digests: list[int] = []
    names: list[str] = []
    flips: list[Flipped] = []
    with progress.step(f"Evaluate on {dataset.spec}", min(len(dataset), limit or len(dataset))) as advance:
        for turn in turns(named_batches(dataset, size, limit=limit)):
            first, second = (
                [side.answer(batch.images, batch.labels, size, batch.further) for batch in turn] for side in sides
            )
            for batch, a, b in zip(turn, first, second, strict=True):
                agreement.append(task.compare_answers(a.answers, b.answers, (a.finite, b.finite)))
                flips += _find_flips(task, batch, a, b, agreement[-1], len(names))[: _MAX_FLIPS - len(flips)]
                digests += batch.digests()
                names += batch.names
            advance(sum(len(batch.labels) for batch in turn))
    outcomes = Outcomes(
        digest=np.array(digests, np.uint64),
        reference=sides[0].values(),
        deployed=sides[1].values(),
        agreement=np.concatenate(agreement),
        finite=np.concatenate(sides[1].finite),
    )
    return AnsweredByBoth(outcomes, names, flips)


def _find_flips(
    task: Task, batch: NamedBatch, reference: PerSample, deployed: PerSample, agreement: Array, start: int
) -> list[Flipped]:
    return [
        Flipped(start + i, batch.names[i], batch.images[i], (reference.answers[i], deployed.answers[i]))
        for i in np.flatnonzero(agreement < task.flip_below).tolist()
    ]


def turns(stream: Iterable[NamedBatch]) -> Iterator[list[NamedBatch]]:
    """Group batches into turns: one side answers all batches of a turn, then the other side does.

    After a run, an engine's threads spin for some milliseconds (25 ms in ONNX Runtime). If the sides took turns after
    every image, each would compete with the spinning threads of the other and be ten times slower.
    """
    turn: list[NamedBatch] = []
    size = 0
    for batch in stream:
        turn.append(batch)
        size += batch.images.nbytes
        if size >= _TURN_BYTES:
            yield turn
            turn, size = [], 0
    if turn:
        yield turn


class RunningSide:
    """A model that runs here, and the statistics of its answers so far."""

    def __init__(self, session: Session, task: Task, manifest: Manifest, form: InputForm) -> None:
        self._session = session
        self._task = task
        self._input = manifest.inputs[0].name
        self._feed = partial(to_input, preprocess=manifest.preprocess, form=form)
        self._values: list[tasks.Values] = []
        self.finite: list[Array] = []

    def answer(
        self, images: Array, labels: Sequence[Label], size: int, further: Mapping[str, Array] | None = None
    ) -> PerSample:
        """Answer a batch of uint8 images. A last, smaller batch is padded, and the answers to the padding are cut."""
        count, inputs = len(images), {_IMAGES: images, **(further or {})}
        if count < size:
            inputs = {
                name: np.concatenate([value, np.repeat(value[-1:], size - count, axis=0)])
                for name, value in inputs.items()
            }
        images = inputs.pop(_IMAGES)
        batched = tasks.find_batched(self._session.run({self._input: self._feed(images), **inputs}), len(images))
        outputs = self._task.select_outputs(batched)
        statistics = self._task.statistics({name: value[:count] for name, value in outputs.items()}, labels)
        self.finite.append(statistics.finite)
        self._values.append(statistics.values)
        return statistics

    def values(self) -> tasks.Values:
        """Return the statistics of all samples."""
        if not self._values:
            raise DataError("no sample could be read", fix="Check the data folder.")
        return {name: np.concatenate([values[name] for values in self._values]) for name in self._values[0]}
