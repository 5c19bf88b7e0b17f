"""What a model is for: one task a file.

A task reads a model's outputs as answers, so that two models can be compared without any label, and turns answers and
labels into numbers of each sample, so that two models can be compared pair by pair.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vitdeploy import plugins
from vitdeploy.errors import DataError, RecipeError
from vitdeploy.recipe import Frozen, TaskSpec, parse
from vitdeploy.session import Array


@dataclass(frozen=True)
class PerSample:
    """Statistics of one batch, sample by sample.

    Attributes:
        values: metric -> a number for each sample, shape (n,); the first metric is the one that gates look at.
        prediction: what the model said, shape (n, …); a sample whose prediction differs between two models is a flip.
    """

    values: Mapping[str, Array]
    prediction: Array


class Task(Frozen, ABC):
    """Frozen options, and how its metrics come about."""

    units: ClassVar[Mapping[str, str]] = {}
    """Metric -> unit of its drop."""

    @abstractmethod
    def answers(self, outputs: Mapping[str, Array]) -> Sequence[Array]:
        """What the model says about each sample of a batch: a class, a map of them, boxes, a vector.

        Raises:
            DataError: the outputs are not of this task.
        """

    @abstractmethod
    def alike(self, reference: Array, deployed: Array) -> float:
        """How far two answers about one sample agree, from 0 to 1."""

    def agreement(self, reference: Mapping[str, Array], deployed: Mapping[str, Array]) -> Array:
        """How far the outputs of two models for one batch agree, sample by sample: (n,), from 0 to 1. Needs no labels.

        A sample for which either side gave NaN or infinity does not agree at all.

        Raises:
            DataError: the outputs are not of this task, or not of the same samples.
        """
        pairs = self.answers(reference), self.answers(deployed)
        if len(pairs[0]) != len(pairs[1]):
            raise DataError(
                f"answers about {len(pairs[0])} and {len(pairs[1])} samples are no pairs", fix="Give both one batch."
            )
        usable = finite_samples(reference) & finite_samples(deployed)
        found = [self.alike(*pair) if ok else 0.0 for pair, ok in zip(zip(*pairs, strict=True), usable, strict=True)]
        return np.array(found, dtype=np.float64)

    @abstractmethod
    def statistics(self, outputs: Mapping[str, Array], labels: Array) -> PerSample:
        """The numbers of each sample of one batch.

        Raises:
            DataError: the outputs are not of this task, or the labels do not fit them.
        """

    @abstractmethod
    def aggregate(self, statistics: PerSample) -> Mapping[str, float]:
        """The metrics over all samples, in their unit."""


def finite_samples(outputs: Mapping[str, Array]) -> Array:
    """(n,) bool: for which samples of a batch every floating output is free of NaN and infinity."""
    checked = [np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in outputs.values() if _floating(a)]
    usable: Array = np.logical_and.reduce(checked) if checked else np.ones(_samples(outputs), dtype=bool)
    return usable


def _floating(array: Array) -> bool:
    return array.ndim > 0 and bool(np.issubdtype(array.dtype, np.floating))


def _samples(outputs: Mapping[str, Array]) -> int:
    return len(next(iter(outputs.values()))) if outputs else 0


def find(spec: TaskSpec) -> Task:
    """The task of a recipe, its options validated.

    Raises:
        RecipeError: there is no such task, or it has no such option.
    """
    try:
        kind = plugins.find(sys.modules[__name__], spec.kind, Task)  # type: ignore[type-abstract]
    except LookupError as error:
        raise RecipeError(f"task: {error.args[0]}", fix="Set task.kind to one of them.") from None
    return parse(kind, spec.options, where=f"task {spec.kind}")
