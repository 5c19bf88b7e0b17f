"""Compare the answers of two models about the same images: the accuracy that a precision loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from vitdeploy.data.labels import Label
from vitdeploy.session import Array
from vitdeploy.tasks import Task, find_batched

_POINTS = 100.0
_BETTER_THAN_CHANCE = 2.0
"""Labels count only if the reference is right this many times as often as chance, and if its answers do not follow them
in another order; else they do not fit the model."""


@dataclass(frozen=True)
class Answers:
    """The answers of one model about the images, as the task reads them from its outputs.

    Attributes:
        answers: one for each image.
        finite: (n,) bool, whether the outputs were free of NaN and infinity.
        right: (n,) 0 or 1, if the images have labels that the task can judge; else None.
        labels: of those images.
        batches: the number of batches.
        classes: the number of classes among the labels.
    """

    answers: list[Array]
    finite: Array
    right: Array | None
    labels: list[Label]
    batches: int
    classes: int


class Loss(NamedTuple):
    """The accuracy that a model loses: percentage points, the way they were judged, and the number of images."""

    points: float
    judged_by: Literal["labels", "agreement"]
    images: int


class AnswersInProgress:
    """The answers of one model so far, batch by batch.

    Attributes:
        batches: the number of batches.
        bytes: the size of the answers.
    """

    def __init__(self, task: Task) -> None:
        self.batches = 0
        self.bytes = 0
        self._task = task
        self._answers: list[Array] = []
        self._finite: list[Array] = []
        self._right: list[Array] = []
        self._labels: list[Label] = []

    def add(self, results: Mapping[str, Array], count: int, labels: Sequence[Label] | None) -> None:
        """Add the outputs for a batch of `count` images, and the labels of the images if they have any.

        Raises:
            DataError: the outputs are not of this task.
        """
        outputs = find_batched(results, count)
        answers = self._task.read_answers(outputs)
        self._answers += answers
        self._finite.append(self._task.find_finite_answers(outputs))
        marks = None if labels is None else self._task.are_right(outputs, labels)
        if labels is not None and marks is not None:
            self._right.append(marks)
            self._labels += labels
        self.batches += 1
        self.bytes += sum(answer.nbytes for answer in answers)

    def finish(self) -> Answers:
        """Return the answers to all batches, of which there is at least one."""
        right = np.concatenate(self._right) if self._right else None
        classes = max(1, len(set(self._labels)))
        return Answers(self._answers, np.concatenate(self._finite), right, self._labels, self.batches, classes)


def drop_foreign_labels(task: Task, answers: Answers) -> Answers:
    """Return the reference's answers without labels that do not fit the model."""
    if answers.right is None:
        return answers
    values = {"answer": np.array(answers.answers), "label": np.array(answers.labels)}
    few = answers.right.mean() < _BETTER_THAN_CHANCE / answers.classes
    return replace(answers, right=None) if few or task.find_doubts(values) else answers


def measure_loss(task: Task, expected: Answers, actual: Answers) -> Loss:
    """Return the loss of `actual` against `expected`, on the same images.

    With labels: top-1 of the reference minus top-1 of the other. Without: 100 · (1 - agreement), as the task defines
    agreement.

    Raises:
        DataError: they are not of the same images.
    """
    by: Literal["labels", "agreement"] = "agreement"
    if expected.right is not None and actual.right is not None:
        by, lost = "labels", float(expected.right.mean() - actual.right.mean())
    else:
        agreed = task.compare_answers(expected.answers, actual.answers, (expected.finite, actual.finite))
        lost = 1 - float(agreed.mean())
    return Loss(round(_POINTS * lost, 3), by, len(expected.answers))


def explain_loss(points: float, limit: float) -> str:
    """Return the reason why a loss is too large; empty if it is not."""
    return "" if points <= limit else f"over the budget of {limit:g}"
