"""Image classification: top-1 and top-5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from vitdeploy.data.labels import Label
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer, Guess
from vitdeploy.evidence.reading import PostProcessing
from vitdeploy.session import Array
from vitdeploy.tasks import (
    PerSample,
    Task,
    Values,
    WeightedMetrics,
    _outputs,
    check_count,
    class_name,
    format_share,
)
from vitdeploy.tasks._label_order import find_other_order

_TOP = 5
_PERCENT = 100.0
_ONE_CLASS = "The model has no other class, so this share is always 100 %: a second one would make it say something."
_SUM_ERROR = 0.1  # of probabilities in INT8, of which each is rounded


class Classification(Task):
    """A class for each image, from scores (batch, classes).

    `output` names the scores if the model has several outputs. The default is "logits", else the first 2-D output.
    """

    metric_names: ClassVar[Mapping[str, str]] = {"top1": "top-1", "top5": "top-5"}
    units: ClassVar[Mapping[str, str]] = {"top1": "points", "top5": "points"}
    binary: ClassVar[frozenset[str]] = frozenset(units)
    ranking_only: ClassVar[frozenset[str]] = frozenset({"confidence"})
    agreement_name: ClassVar[str] = "same prediction"
    output: str | None = None

    def read_answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """Return the best class of each image. Of equal scores the lower index wins."""
        return list(self._scores(outputs).argmax(axis=1))

    def select_outputs(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the scores."""
        name = self._find_scores(outputs)
        return {name: outputs[name]}

    def compare_pair(self, reference: Array, deployed: Array) -> float:
        """Return 1 if both are the same class, else 0."""
        return float(reference == deployed)

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """Return 0 or 1 for each sample: 1 if the label is the best class (top1), or among the best five (top5).

        With five classes or fewer there is no top5. Of equal scores the lower index wins. A sample with NaN or infinite
        scores is wrong. `confidence` is the probability of the best class.
        """
        scores = self._scores(outputs)
        truth = np.asarray(labels)
        check_count(len(scores), labels)
        classes = scores.shape[1]
        if len(truth) and (truth.min() < 0 or truth.max() >= classes):
            raise DataError(
                f"labels go from {truth.min()} to {truth.max()}, the model has {classes} classes",
                fix="Use the model's class indices as labels.",
            )
        label_scores = scores[np.arange(len(truth)), truth][:, None]
        first = np.arange(classes)[None, :] < truth[:, None]
        finite = self.find_finite_answers(outputs)  # NaN compares as false everywhere, and would be ranked first
        rank = ((scores > label_scores) | ((scores == label_scores) & first)).sum(axis=1)
        values = {"top1": ((rank < 1) & finite).astype(np.float64)}
        if classes > _TOP:
            values["top5"] = ((rank < _TOP) & finite).astype(np.float64)
        answers = scores.argmax(axis=1)
        confidence = np.where(finite, _probabilities(scores).max(axis=1, initial=0), 0.0)
        values |= {"answer": answers, "label": truth, "confidence": confidence}
        return PerSample(values, list(answers), finite)

    def weighted_metrics(self, values: Values) -> WeightedMetrics:
        """Return a function for the shares of ones, in percent."""
        outcomes = {name: values[name] for name in self.units if name in values}
        return lambda weights: {name: _PERCENT * float(np.average(o, weights=weights)) for name, o in outcomes.items()}

    def are_right(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> Array:
        """Return 1 for each image whose label is the best class, else 0."""
        return np.asarray(self.statistics(outputs, labels).values["top1"])

    def at_threshold(self, values: Values, threshold: float) -> Values | None:
        """Return the answers with at least this probability, and whether they are right."""
        if "confidence" not in values:
            return None
        sure = values["confidence"] >= threshold
        return {"hits": sure & (values["top1"] > 0), "found": sure, "wanted": np.ones(len(sure))}

    def find_groups(self, values: Values) -> Array:
        """Return the label of each sample."""
        return values["label"]

    def summarize_answer(self, answer: Array, names: Sequence[str] | None) -> str:
        """Return the name of the class."""
        return class_name(int(answer), None if names is None else tuple(names))

    def describe_output(self, shape: tuple[int | str, ...], labels: tuple[str, ...] | None) -> str:
        """Describe an output (batch, classes) as logits."""
        if len(shape) != 2:
            return ""
        order = " in the order of `labels`" if labels is not None and shape[1] == len(labels) else ""
        return f"logits{order}; softmax gives probabilities"

    def describe_reading(self, shapes: Mapping[str, tuple[int | str, ...]]) -> PostProcessing | None:
        """Return the softmax of the scores, and how many classes `predict` shows."""
        try:
            scores = self._find_scores(_outputs.stand_for(shapes))
        except DataError:
            return None
        return PostProcessing(scores=scores, activation="softmax", top_k=_TOP)

    def find_doubts(self, values: Values, names: Sequence[str] | None = None) -> list[str]:
        """Find labels of one class, labels in another order than the model's, and accuracy no better than chance."""
        answers, truth = values["answer"], values["label"]
        present = np.unique(truth)
        if len(present) == 1:
            return [f"every label is class {present[0]}: a model that always gives this class would be right"]
        if (other := find_other_order(answers, truth)) is not None:
            return [other.describe(names)]
        return _find_chance((answers == truth).astype(np.float64), len(present))

    def count_classes(self, shapes: Mapping[str, tuple[int | str, ...]]) -> int | None:
        """Return the size of the scores, (batch, classes)."""
        return _outputs.read_size(shapes, self.output, ("logits",), dims=2, axis=1)

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,
        view: tuple[float, float, float, float],  # noqa: ARG002  a class has no place
        picture: tuple[int, int] | None = None,  # noqa: ARG002
    ) -> Answer:
        """Return the five best classes with their probabilities."""
        probabilities = _probabilities(self._scores(outputs))[0]
        best = np.argsort(-probabilities, kind="stable")[:_TOP]
        return Answer(
            top=tuple(
                Guess(index=int(i), label=class_name(int(i), labels), probability=float(probabilities[i])) for i in best
            )
        )

    def format_answer(self, answer: Answer) -> list[str]:
        """Return a line for each class, in percent; for a model of one class, also that this says nothing."""
        lines = [format_share(guess.probability, guess.label) for guess in answer.top]
        return [*lines, _ONE_CLASS] if len(lines) == 1 else lines

    def _scores(self, outputs: Mapping[str, Array]) -> Array:
        return outputs[self._find_scores(outputs)]

    def _find_scores(self, outputs: Mapping[str, Array]) -> str:
        form, fix = "(batch, classes)", "Give a classifier, or name the model's task with --task."
        return _outputs.find_output(outputs, self.output, ("logits",), 2, form, fix)


def _probabilities(scores: Array) -> Array:
    """Return the probabilities of the classes: softmax of logits; the scores themselves if they are probabilities.

    Each row is judged by itself, so that no image changes the answer to another one of its batch.
    """
    from scipy.special import softmax

    exact = scores.astype(np.float64)
    with np.errstate(all="ignore"):  # what is not finite is left to the caller
        inside = ((exact >= 0) & (exact <= 1)).all(axis=1, keepdims=True)
        are_probabilities = inside & (np.abs(exact.sum(axis=1, keepdims=True) - 1) <= _SUM_ERROR)
        return np.where(are_probabilities, exact, softmax(exact, axis=1))


def _find_chance(right: Array, classes: int) -> list[str]:
    if right.mean() > 1 / classes:
        return []
    return [
        f"the reference is right for {_PERCENT * right.mean():.1f} % of the images, no more than a guess among the "
        f"{classes} classes of the data: are the labels in the model's order?"
    ]
