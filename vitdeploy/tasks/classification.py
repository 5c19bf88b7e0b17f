"""Image classification: top-1 and top-5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from vitdeploy.data.labels import Label
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer, Guess
from vitdeploy.session import Array
from vitdeploy.tasks import PerSample, Task, Values, Weigh, _outputs, check_count, finite_samples, name_of, share_line

_TOP = 5
_PERCENT = 100.0
_SEEN_OFTEN = 5  # images of a class, from which on their most frequent prediction is no accident


class Classification(Task):
    """A class for each image, out of (batch, classes) scores.

    `output` names the scores where the model has several outputs; by default "logits", else the first 2-D one.
    """

    metric_names: ClassVar[Mapping[str, str]] = {"top1": "top-1", "top5": "top-5"}
    units: ClassVar[Mapping[str, str]] = {"top1": "points", "top5": "points"}
    binary: ClassVar[frozenset[str]] = frozenset(units)
    agreement_name: ClassVar[str] = "same prediction"
    output: str | None = None

    def answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """The best class of each image; of equal scores the lower index."""
        return list(self._scores(outputs).argmax(axis=1))

    def alike(self, reference: Array, deployed: Array) -> float:
        """1 when both name the same class, else 0."""
        return float(reference == deployed)

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """0 or 1 for each sample: was the label the best class (top1), was it among the best five (top5).

        top5 is left out when there are five classes or fewer. Of equal scores the lower index wins;
        a sample with NaN or infinite scores is wrong.
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
        own = scores[np.arange(len(truth)), truth][:, None]
        earlier = np.arange(classes)[None, :] < truth[:, None]
        finite = finite_samples(outputs)  # NaN compares as false everywhere, and would be ranked first
        rank = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
        values = {"top1": ((rank < 1) & finite).astype(np.float64)}
        if classes > _TOP:
            values["top5"] = ((rank < _TOP) & finite).astype(np.float64)
        answers = scores.argmax(axis=1)
        return PerSample({**values, "answer": answers, "label": truth}, list(answers), finite)

    def weigher(self, values: Values) -> Weigh:
        """Shares of the samples, in percent."""
        outcomes = {name: values[name] for name in self.units if name in values}
        return lambda weights: {name: _PERCENT * float(np.average(o, weights=weights)) for name, o in outcomes.items()}

    def right(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> Array:
        """Return whether the label is the best class."""
        return np.asarray(self.statistics(outputs, labels).values["top1"])

    def describe_output(self, shape: tuple[int | str, ...], labels: tuple[str, ...] | None) -> str:
        """Return that a (batch, classes) output holds logits."""
        if len(shape) != 2:
            return ""
        order = " in the order of `labels`" if labels is not None and shape[1] == len(labels) else ""
        return f"logits{order}; softmax gives probabilities"

    def doubts(self, values: Values) -> list[str]:
        """One class only; predictions that follow the labels, in another order; no more right than by chance."""
        answers, truth = values["answer"], values["label"]
        present = np.unique(truth)
        if len(present) == 1:
            return [f"every label is class {present[0]}: a model that always says so would be right"]
        return _another_order(answers, truth) or _chance(values["top1"], len(present))

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,
        view: tuple[float, float, float, float],  # noqa: ARG002  a class has no place
    ) -> Answer:
        """The five best classes with their probabilities."""
        from scipy.special import softmax

        probabilities = softmax(self._scores(outputs)[0].astype(np.float64))
        best = np.argsort(-probabilities, kind="stable")[:_TOP]
        return Answer(
            top=tuple(
                Guess(index=int(i), label=name_of(int(i), labels), probability=float(probabilities[i])) for i in best
            )
        )

    def lines(self, answer: Answer) -> list[str]:
        """Return a line for each class, in percent."""
        return [share_line(guess.probability, guess.label) for guess in answer.top]

    def _scores(self, outputs: Mapping[str, Array]) -> Array:
        what, fix = "(batch, classes)", "Classify with a classifier, or say what it is for: --task KIND."
        return _outputs.chosen(outputs, self.output, ("logits",), 2, what, fix)


def _another_order(answers: Array, truth: Array) -> list[str]:
    """Whether each class has a prediction of its own that most of its images get, and it is another class."""
    often = [label for label in np.unique(truth) if (truth == label).sum() >= _SEEN_OFTEN]
    favourites = {label: np.bincount(answers[truth == label]).argmax() for label in often}
    moved = [label for label in often if favourites[label] != label]
    if not moved or len(often) < 2 or len(set(favourites.values())) < len(often):
        return []
    judged = np.isin(truth, often)
    relabelled = (np.array([favourites[label] for label in truth[judged]]) == answers[judged]).mean()
    right = (truth[judged] == answers[judged]).mean()
    if relabelled < max(0.5, 2 * right):
        return []
    return [
        f"the labels seem to be in another order than the model's: {_PERCENT * right:.0f} % are right, "
        f"{_PERCENT * relabelled:.0f} % would be if class {moved[0]} were the model's {favourites[moved[0]]}, and so "
        "on: name the sub-folders by the model's labels or class indices"
    ]


def _chance(right: Array, classes: int) -> list[str]:
    if right.mean() > 1 / classes:
        return []
    return [
        f"the reference is right for {_PERCENT * right.mean():.1f} %, no more than a guess among the {classes} classes "
        "of the data: are the labels in the model's order?"
    ]
