"""A toy task: is the class even or odd?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from vitdeploy.data.labels import Label
from vitdeploy.evidence.predictions import Answer
from vitdeploy.session import Array
from vitdeploy.tasks import PerSample, Task, Values, WeightedMetrics, check_count, find_finite_samples


class Even(Answer):
    """What it says about an image."""

    even: bool


class Parity(Task):
    """Even or odd, out of (batch, classes) scores."""

    metric_names: ClassVar[Mapping[str, str]] = {"even_odd": "even or odd"}
    units: ClassVar[Mapping[str, str]] = {"even_odd": "points"}
    binary: ClassVar[frozenset[str]] = frozenset(units)

    def read_answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """0 for even, 1 for odd."""
        return list(next(iter(outputs.values())).argmax(axis=1) % 2)

    def compare_pair(self, reference: Array, deployed: Array) -> float:
        """1 if both are even or both are odd."""
        return float(reference == deployed)

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """0 or 1 for each sample."""
        answers, finite = self.read_answers(outputs), find_finite_samples(outputs)
        check_count(len(answers), labels)
        right = (np.asarray(answers) == np.asarray(labels) % 2) & finite
        return PerSample({"even_odd": right.astype(np.float64)}, answers, finite)

    def weighted_metrics(self, values: Values) -> WeightedMetrics:
        """The share of right answers, in percent."""
        return lambda weights: {"even_odd": 100 * float(np.average(values["even_odd"], weights=weights))}

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,
        view: tuple[float, float, float, float],
    ) -> Answer:
        """The answer about the first sample."""
        return Even(even=bool(self.read_answers(outputs)[0] == 0))

    def format_answer(self, answer: Answer) -> list[str]:
        """One word."""
        return ["even" if getattr(answer, "even", False) else "odd"]
