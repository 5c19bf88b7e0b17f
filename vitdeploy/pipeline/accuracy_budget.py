"""Measure on images how much accuracy a precision loses, before it is chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Literal

import numpy as np

from vitdeploy import tasks
from vitdeploy.artifact import Trial
from vitdeploy.artifact.layout import GRAPH
from vitdeploy.data.labels import Label
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.pipeline.calibration import JUDGING_IMAGES, JudgingBatches
from vitdeploy.pipeline.candidate import Candidate, CandidateBuilder
from vitdeploy.progress import Progress
from vitdeploy.session import Array, Session, as_feeds, images_of

_POINTS = 100.0
_MOST_ANSWER_BYTES = 256 << 20
"""The most memory for stored answers of the reference: a segmentation map of 512 x 512 takes 2 MB."""
_BETTER_THAN_CHANCE = 2.0
"""Labels count only if the reference is right this many times as often as chance, and if its answers do not follow them
in another order; else they do not fit the model."""


@dataclass(frozen=True)
class _Answers:
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


class AccuracyBudget:
    """Judge candidates by the accuracy that they lose against `reference`, in percentage points.

    With labels: top-1 of the reference minus top-1 of the candidate. Without: 100 · (1 - agreement), as the task
    defines agreement. With `emulated`, ONNX Runtime on this CPU runs the candidates, because the target cannot.
    """

    def __init__(
        self,
        builder: CandidateBuilder,
        reference: Candidate,
        limit: float,
        batches: JudgingBatches,
        progress: Progress,
        *,
        emulated: bool = False,
    ) -> None:
        self.limit = limit
        self._builder = builder
        self._reference = reference
        self._batches = batches
        self._progress = progress
        self._emulated = emulated
        self._task = tasks.find(builder.prepared.facts.task)

    def judge(self, candidate: Candidate) -> Trial:
        """Measure the accuracy that the candidate loses."""
        expected = self._expected
        actual = self._run(candidate, expected.batches)
        by: Literal["labels", "agreement"] = "agreement"
        if expected.right is not None and actual.right is not None:
            by, lost = "labels", float(expected.right.mean() - actual.right.mean())
        else:
            agreed = self._task.compare_answers(expected.answers, actual.answers, (expected.finite, actual.finite))
            lost = 1 - float(agreed.mean())
        points = round(_POINTS * lost, 3)
        return Trial(
            precision=candidate.name,
            float_linears=candidate.float_linears,
            lost=points,
            judged_by=by,
            images=len(expected.answers),
            why="" if points <= self.limit else f"over the budget of {self.limit:g}",
        )

    def holds(self, trial: Trial) -> bool:
        """Return True if the trial lost no more than the limit."""
        return trial.lost is not None and trial.lost <= self.limit

    @cached_property
    def _expected(self) -> _Answers:
        answers = self._run(self._reference)
        if answers.right is None:
            return answers
        values = {"answer": np.array(answers.answers), "label": np.array(answers.labels)}
        few = answers.right.mean() < _BETTER_THAN_CHANCE / answers.classes
        return replace(answers, right=None) if few or self._task.find_doubts(values) else answers

    def _run(self, candidate: Candidate, batches: int | None = None) -> _Answers:
        """Run a candidate on `batches` batches. The reference runs until its answers fill `_MOST_ANSWER_BYTES`."""
        answers: list[Array] = []
        finite: list[Array] = []
        right: list[Array] = []
        truth: list[Label] = []
        size = count = 0
        title = f"Judge {candidate.name} on images"
        with self._open(candidate) as session, self._progress.step(title, JUDGING_IMAGES) as advance:
            for inputs, labels in islice(self._batches(), batches):
                results = session.run(as_feeds(inputs, self._builder.prepared.facts.examples.input_name))
                images = images_of(inputs)
                outputs = tasks.find_batched(results, len(images))
                answers += self._task.read_answers(outputs)
                finite.append(self._task.find_finite_answers(outputs))
                marks = None if labels is None else self._task.are_right(outputs, labels)
                if labels is not None and marks is not None:
                    right.append(marks)
                    truth += labels
                advance(len(images))
                count += 1
                size += sum(a.nbytes for a in answers[-len(images) :])
                if batches is None and size > _MOST_ANSWER_BYTES:
                    break
        if not answers:
            raise QuantizeError(
                "there is no image to judge the precision on", fix="Give --calibration a folder with images."
            )
        rights = np.concatenate(right) if right else None
        return _Answers(answers, np.concatenate(finite), rights, truth, count, max(1, len(set(truth))))

    def _open(self, candidate: Candidate) -> Session:
        return OnnxSession(candidate.folder / GRAPH) if self._emulated else self._builder.open(candidate)
