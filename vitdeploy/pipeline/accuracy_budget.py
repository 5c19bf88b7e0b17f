"""Measure on images how much accuracy a precision loses, before it is chosen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import islice

from vitdeploy import tasks
from vitdeploy.artifact import Trial
from vitdeploy.artifact.layout import GRAPH
from vitdeploy.errors import QuantizeError
from vitdeploy.frozen import replace
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.pipeline.calibration import JUDGING_IMAGES, JudgingBatches
from vitdeploy.pipeline.candidate import Candidate, CandidateBuilder
from vitdeploy.pipeline.exported_graph import widened
from vitdeploy.pipeline.judging import Answers, AnswersInProgress, drop_foreign_labels, explain_loss, measure_loss
from vitdeploy.progress import Progress
from vitdeploy.session import Session, as_feeds, images_of

_LONGEST_JUDGING = 20.0
"""Seconds after which the reference takes no images beyond the first `JUDGING_IMAGES`."""

_MOST_ANSWER_BYTES = 256 << 20
"""The most memory for stored answers of the reference: a segmentation map of 512 x 512 takes 2 MB."""

_ROUNDED_BY_ENGINE = "its accuracy is not known: the target's engine rounds activations, and it cannot run here"


def make_trial(candidate: Candidate) -> Trial:
    """Return the trial of a candidate that nothing was measured of yet."""
    return Trial(
        precision=candidate.name,
        quantizer=candidate.quantizer,
        attention=candidate.attention,
        folded_norms=candidate.folded_norms,
        float_linears=candidate.float_linears,
    )


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
        """Measure the accuracy that the candidate loses; it is None where only the target's engine could show it."""
        if self._emulated and self._is_rounded_by_engine(candidate):
            return replace(make_trial(candidate), why=_ROUNDED_BY_ENGINE)
        expected = self._expected
        loss = measure_loss(self._task, expected, self._run(candidate, expected))
        return replace(
            make_trial(candidate),
            lost=loss.points,
            judged_by=loss.judged_by,
            images=loss.images,
            why=explain_loss(loss.points, self.limit),
        )

    def holds(self, trial: Trial) -> bool:
        """Return True if the trial lost no more than the limit."""
        return trial.lost is not None and trial.lost <= self.limit

    @cached_property
    def _expected(self) -> Answers:
        return drop_foreign_labels(self._task, self._run(self._reference))

    def _run(self, candidate: Candidate, expected: Answers | None = None) -> Answers:
        """Run a candidate on the batches that the reference has answered.

        The reference itself runs until its answers fill `_MOST_ANSWER_BYTES`, or the time for further images is over.
        """
        batches, total = (None, None) if expected is None else (expected.batches, len(expected.answers))
        answers = AnswersInProgress(self._task)
        title = f"Judge {candidate.label} on images"
        started, images = time.monotonic(), 0
        with self._open(candidate) as session, self._progress.step(title, total) as advance:
            for batch in islice(self._batches(), batches):
                results = session.run(as_feeds(batch.inputs, self._builder.prepared.facts.examples.input_name))
                count = len(images_of(batch.inputs))
                answers.add(results, count, batch.labels)
                advance(count)
                images += count
                is_late = images >= JUDGING_IMAGES and time.monotonic() - started > _LONGEST_JUDGING
                if batches is None and (is_late or answers.bytes > _MOST_ANSWER_BYTES):
                    break
        if not answers.batches:
            raise QuantizeError(
                "there is no image to judge the precision on", fix="Give --calibration a folder with images."
            )
        return answers.finish()

    @contextmanager
    def _open(self, candidate: Candidate) -> Iterator[Session]:
        with ExitStack() as stack:
            if not self._emulated:
                yield stack.enter_context(self._builder.open(candidate))
                return
            graph = candidate.folder / GRAPH
            if "bf16" in candidate.precision.numbers.types:  # ONNX Runtime has no bfloat16 on CPUs
                graph = stack.enter_context(widened(graph))
            yield stack.enter_context(OnnxSession(graph))

    def _is_rounded_by_engine(self, candidate: Candidate) -> bool:
        """Return whether the engine rounds activations by itself, so that the graph alone loses too little."""
        return candidate.precision.numbers.dynamic and self._builder.dialect.int8_linears == "qdq"
