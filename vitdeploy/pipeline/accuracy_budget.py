"""What a precision loses, judged on images before it is chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Literal

import numpy as np

from vitdeploy import tasks
from vitdeploy.artifact import Trial
from vitdeploy.artifact.layout import GRAPH
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.pipeline.calibration import JUDGED_IMAGES, judged
from vitdeploy.pipeline.candidate import Candidate, Workshop
from vitdeploy.progress import Progress
from vitdeploy.session import Array, Session

_POINTS = 100.0
_MOST_ANSWER_BYTES = 256 << 20
"""Of the reference, which are kept: a segmentation map of 512 x 512 is 2 MB."""
_BETTER_THAN_CHANCE = 2.0
"""Labels count only if the reference is right this many times as often as chance: else they are no labels of its."""


@dataclass(frozen=True)
class _Answers:
    """What one side said about the images, as the task reads its outputs; which were finite, and which were right.

    `batches` and `classes` are how many of each there were.
    """

    said: list[Array]
    finite: Array
    right: Array | None
    batches: int
    classes: int


class Budget:
    """Judges candidates by the share of images on which they lose against `reference`, in points.

    With labels: top-1 of the reference minus top-1 of the candidate. Without: 100 · (1 - agreement), as the task
    defines agreement. `emulated`: run by ONNX Runtime on this CPU, because the target cannot run here.
    """

    def __init__(
        self, shop: Workshop, reference: Candidate, limit: float, progress: Progress, *, emulated: bool = False
    ) -> None:
        self.limit = limit
        self._shop = shop
        self._reference = reference
        self._progress = progress
        self._emulated = emulated
        self._task = tasks.find(shop.prepared.task)
        self._stream = judged(shop.recipe, shop.prepared.preprocess, shop.prepared.labels)

    def judge(self, candidate: Candidate) -> Trial:
        """What the candidate loses."""
        expected = self._expected
        found = self._answers(candidate, expected.batches)
        by: Literal["labels", "agreement"] = "agreement"
        if expected.right is not None and found.right is not None:
            by, lost = "labels", float(expected.right.mean() - found.right.mean())
        else:
            agreed = self._task.agreed(expected.said, found.said, (expected.finite, found.finite))
            lost = 1 - float(agreed.mean())
        return Trial(
            precision=candidate.kind,
            float_linears=candidate.float_linears,
            lost=round(_POINTS * lost, 3),
            judged_by=by,
            images=len(expected.said),
        )

    def holds(self, trial: Trial) -> bool:
        """Whether it lost no more than the limit."""
        return trial.lost is not None and trial.lost <= self.limit

    @cached_property
    def _expected(self) -> _Answers:
        found = self._answers(self._reference)
        if found.right is not None and found.right.mean() < _BETTER_THAN_CHANCE / found.classes:
            return replace(found, right=None)
        return found

    def _answers(self, candidate: Candidate, batches: int | None = None) -> _Answers:
        """About so many batches; of the reference, as many as `_MOST_ANSWER_BYTES` hold."""
        said: list[Array] = []
        finite: list[Array] = []
        right: list[Array] = []
        classes: set[int] = set()
        size = count = 0
        title = f"Judge {candidate.kind} on images"
        with self._open(candidate) as session, self._progress.step(title, JUDGED_IMAGES) as advance:
            for images, labels in islice(self._stream(), batches):
                outputs = session.run({self._shop.prepared.examples.input_name: images})
                said += self._task.answers(outputs)
                finite.append(tasks.finite_samples(outputs))
                if labels is not None and self._shop.prepared.task.kind == "classification":
                    right.append(self._task.statistics(outputs, labels).values["top1"])
                    classes.update(label for label in labels if isinstance(label, int))
                advance(len(images))
                count += 1
                size += sum(a.nbytes for a in said[-len(images) :])
                if batches is None and size > _MOST_ANSWER_BYTES:
                    break
        if not said:
            raise QuantizeError(
                "there is no image to judge the precision on", fix="Give --calibration a folder with images."
            )
        rights = np.concatenate(right) if right else None
        return _Answers(said, np.concatenate(finite), rights, count, max(1, len(classes)))

    def _open(self, candidate: Candidate) -> Session:
        return OnnxSession(candidate.folder / GRAPH) if self._emulated else self._shop.open(candidate)
