"""The two models that answer the same samples, and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from vitdeploy import tasks
from vitdeploy.artifact import Manifest
from vitdeploy.commands.evaluate.gathered import Gathered
from vitdeploy.commands.evaluate.units import Unit, batch_size, unit_size
from vitdeploy.data.labels import Label
from vitdeploy.data.preprocess import to_input
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import DataError, VitdeployError
from vitdeploy.recipe import InputForm
from vitdeploy.session import Array, Session
from vitdeploy.tasks import PerSample, Task

_IMAGES = ""  # no input has this name
_FINITE = "finite"
_SAME = 1e-4
"""Share of the largest value that batches may change by rounding: float32 kernels add in another order."""


class Side(Protocol):
    """One of the two compared models. It runs here, or its answers were recorded on another machine."""

    @property
    def finite(self) -> list[Array]:
        """Bool arrays, together one for each answered sample: False if an output has NaN or infinity."""

    def answer_unit(self, unit: Unit, size: int) -> PerSample:
        """Answer the samples of a unit; `size` is the batch size of the artifact."""

    def values(self) -> tasks.Values:
        """Return the statistics of all answered samples."""


class RunningSide:
    """A model that runs here, and the statistics of its answers so far.

    Args:
        session: the model.
        task: reads its answers.
        manifest: of the artifact.
        form: the form of the images that the model takes.
        whole: True to answer a whole unit at once, see `takes_units`.
    """

    def __init__(
        self, session: Session, task: Task, manifest: Manifest, form: InputForm, *, whole: bool = False
    ) -> None:
        self._session = session
        self._task = task
        self._input = manifest.inputs[0].name
        self._feed = partial(to_input, preprocess=manifest.preprocess, form=form)
        self._values, self._finite = Gathered(), Gathered()
        self._whole = whole

    @property
    def finite(self) -> list[Array]:
        """Bool arrays, together one for each answered sample: False if an output has NaN or infinity."""
        return list(self._finite.join().values())

    def answer_unit(self, unit: Unit, size: int) -> PerSample:
        """Answer the samples of a unit, at once or in batches of the artifact's size."""
        if self._whole:
            batch = unit.batch
            return self.answer(batch.images, batch.labels, len(batch.images), batch.further)
        parts = [self.answer(part.images, part.labels, size, part.further) for part in unit.parts()]
        if len(parts) == 1:
            return parts[0]
        answers = [answer for part in parts for answer in part.answers]
        return PerSample({}, answers, np.concatenate([part.finite for part in parts]))

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
        self._finite.add({_FINITE: statistics.finite})
        self._values.add(statistics.values)
        return statistics

    def values(self) -> tasks.Values:
        """Return the statistics of all samples."""
        values = self._values.join()
        if not values:
            raise DataError("no sample could be read", fix="Check the data folder.")
        return values


def takes_units(session: Session, task: Task, manifest: Manifest, count: int) -> bool:
    """Return True if a reference gives whole units the answers that it gives in batches of the artifact's size.

    It is tried on made-up images, so that every part of the data gets the same result. Models refuse other batches,
    answer only the first image of one, or mix its images.

    Args:
        session: the reference.
        task: reads its outputs.
        manifest: of the artifact.
        count: the number of samples; fewer than two units are not worth the trial.
    """
    unit, size = unit_size(manifest), batch_size(manifest)
    if unit == size or count < 2 * unit or len(manifest.inputs) > 1:
        return False
    images = np.concatenate([natural_image(seed, manifest.preprocess, 1) for seed in range(unit)])
    try:
        whole = _read(session, task, manifest, images)
        parts = [_read(session, task, manifest, images[start : start + size]) for start in range(0, unit, size)]
    except VitdeployError:
        return False
    return all(
        value.dtype.kind == "f" and _is_same(value, np.concatenate([part[name] for part in parts]))
        for name, value in whole.items()
    )


def _read(session: Session, task: Task, manifest: Manifest, images: Array) -> dict[str, Array]:
    outputs = session.run({manifest.inputs[0].name: to_input(images, manifest.preprocess, "normalized")})
    return task.select_outputs(tasks.find_batched(outputs, len(images)))


def _is_same(whole: Array, parts: Array) -> bool:
    if whole.shape != parts.shape or not (np.isfinite(whole).all() and np.isfinite(parts).all()):
        return False
    return bool(np.abs(whole - parts).max(initial=0) <= _SAME * np.abs(parts).max(initial=0))
