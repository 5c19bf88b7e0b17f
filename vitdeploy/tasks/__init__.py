"""Tasks: one file each, found by its name.

A task reads a model's outputs as answers, so that two models can be compared without any label. With labels it turns
answers into statistics of each sample, and those into metrics. Two models are compared by the metrics of the same
samples, drawn in pairs.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np

from vitdeploy import plugins
from vitdeploy.data.labels import Label
from vitdeploy.errors import DataError, RecipeError
from vitdeploy.evidence.predictions import Answer
from vitdeploy.recipe import Frozen, TaskSpec, parse
from vitdeploy.session import Array

Values = Mapping[str, Array]
"""Statistics by name, each (samples, …)."""

Weigh = Callable[[Array], dict[str, float]]
"""From how often each sample counts, shape (samples,), to the metrics. NaN: not defined for such samples."""

Form = Literal["classes", "masks", "depth", "boxes"]
DEFAULT = "classification"


@dataclass(frozen=True)
class PerSample:
    """What is known about one batch, sample by sample.

    Attributes:
        values: what the metrics are computed from.
        answers: what the model said.
        finite: (n,) bool: whether the sample's outputs were free of NaN and infinity.
    """

    values: Values
    answers: Sequence[Array]
    finite: Array


class Task(Frozen, ABC):
    """Frozen options, and how its metrics come about. Of several metrics the first is the one that gates look at."""

    data: ClassVar[Form] = "classes"
    """The form of its labels: see `vitdeploy.data.dataset`."""
    units: ClassVar[Mapping[str, str]] = {}
    """Metric -> unit of its drop. "points" are hundredths: such a metric goes from 0 to 100."""
    binary: ClassVar[frozenset[str]] = frozenset()
    """Metrics that are the percentage of ones among the statistic of the same name, 0 or 1 for each sample."""
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    """Metrics that measure errors: their drop is deployed - reference, so that above 0 is always worse."""
    order_only: ClassVar[frozenset[str]] = frozenset()
    """Statistics that only put others in order: rounding moves them, and a metric does not differ for that."""
    same_from: ClassVar[float] = 1.0
    """Two answers that agree less than this are a flip."""
    metric_names: ClassVar[Mapping[str, str]] = {}
    """Metric -> its name as people write it."""
    agreement_name: ClassVar[str] = "agreement"
    """The name of the agreement of two models."""

    @property
    def name(self) -> str:
        """The name as users write it."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

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
        usable = finite_samples(reference), finite_samples(deployed)
        return self.agreed(self.answers(reference), self.answers(deployed), usable)

    def agreed(self, reference: Sequence[Array], deployed: Sequence[Array], finite: tuple[Array, Array]) -> Array:
        """`agreement` of answers that were read already."""
        if len(reference) != len(deployed):
            raise DataError(
                f"answers about {len(reference)} and {len(deployed)} samples are no pairs", fix="Give both one batch."
            )
        pairs = zip(reference, deployed, finite[0] & finite[1], strict=True)
        return np.array([self.alike(a, b) if usable else 0.0 for a, b, usable in pairs], dtype=np.float64)

    @abstractmethod
    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """What the metrics are computed from, for each sample of one batch; outputs of NaN or infinity are wrong.

        Raises:
            DataError: the outputs are not of this task, or the labels do not fit them.
        """

    @abstractmethod
    def weigher(self, values: Values) -> Weigh:
        """The metrics of these samples as a function of how often each counts: prepared once, asked for each draw."""

    def aggregate(self, values: Values) -> dict[str, float]:
        """The metrics over all samples, each counted once.

        Raises:
            DataError: there are no samples, or none that a metric is defined for.
        """
        count = len(next(iter(values.values()), ()))
        if not count:
            raise DataError("there are no samples to count", fix="Give data with images.")
        found = self.weigher(values)(np.ones(count))
        undefined = [name for name, value in found.items() if np.isnan(value)]
        if undefined:
            raise DataError(f"{undefined[0]} is not defined: no label to compare with", fix="Give labelled data.")
        return found

    def paired(self, reference: Values, deployed: Values) -> tuple[Values, Values]:
        """Both sides once all samples were seen, with the statistics that need the whole set or the other side."""
        return reference, deployed

    def doubts(self, values: Values) -> list[str]:  # noqa: ARG002  what a task looks at is its own affair
        """Why the metrics of the reference say nothing: labels in another order, one class only."""
        return []

    @abstractmethod
    def describe(
        self, outputs: Mapping[str, Array], labels: tuple[str, ...] | None, view: tuple[float, float, float, float]
    ) -> Answer:
        """Return the answer about the first sample in words and numbers.

        Args:
            outputs: of a batch.
            labels: the model's class names.
            view: top, left, bottom and right of what the model sees, in pixels of the image.

        Raises:
            DataError: the outputs are not of this task.
        """

    @abstractmethod
    def lines(self, answer: Answer) -> list[str]:
        """Return an answer that `describe` gave as lines for people."""

    def right(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> Array | None:  # noqa: ARG002
        """Return for each sample 0 or 1, whether the answer is right; None where answers are not right or wrong."""
        return None

    def describe_output(self, shape: tuple[int | str, ...], labels: tuple[str, ...] | None) -> str:  # noqa: ARG002
        """Return what the numbers of an output are, for programs that read it; empty where that is not known."""
        return ""


def finite_samples(outputs: Mapping[str, Array]) -> Array:
    """(n,) bool: for which samples of a batch every floating output is free of NaN and infinity."""
    checked = [np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in outputs.values() if _floating(a)]
    usable: Array = np.logical_and.reduce(checked) if checked else np.ones(_samples(outputs), dtype=bool)
    return usable


def check_count(answers: int, labels: Sequence[Label]) -> None:
    """Raise when a batch has not one label for each answer."""
    if answers != len(labels):
        raise DataError(f"{answers} predictions for {len(labels)} labels", fix="Give every image one label.")


def name_of(index: int, labels: tuple[str, ...] | None) -> str:
    """The name of a class, or its index where it has none."""
    return labels[index] if labels is not None and 0 <= index < len(labels) else str(index)


def share_line(share: float, label: str) -> str:
    """Return a share from 0 to 1 in percent, and a name."""
    return f"{100 * share:5.1f} %  {label}"


def _floating(array: Array) -> bool:
    return array.ndim > 0 and bool(np.issubdtype(array.dtype, np.floating))


def _samples(outputs: Mapping[str, Array]) -> int:
    return len(next(iter(outputs.values()))) if outputs else 0


def resolve(asked: TaskSpec, own: TaskSpec | None) -> TaskSpec:
    """Return the task that was asked for, with what the model says about it; else the model's, else classification.

    Raises:
        RecipeError: there is no such task, or it has no such option.
    """
    kind = asked.kind or (own.kind if own is not None else None) or DEFAULT
    options = own.options if own is not None and own.kind == kind else {}
    spec = TaskSpec.model_validate({**options, **asked.options, "kind": kind})
    find(spec)
    return spec


def kind_of(name: str) -> type[Task] | None:
    """Return the class of a task; None where it is not known here."""
    try:
        return plugins.find(sys.modules[__name__], name, Task)  # type: ignore[type-abstract]
    except LookupError:
        return None


@cache
def metric_names() -> dict[str, str]:
    """Return the names of all tasks' metrics as people write them."""
    kinds = [kind_of(name) for name in plugins.names(sys.modules[__name__])]
    return {metric: text for kind in kinds if kind is not None for metric, text in kind.metric_names.items()}


def find(spec: TaskSpec) -> Task:
    """Return the task of a recipe, its options validated.

    Raises:
        RecipeError: there is no such task, or it has no such option.
    """
    name = spec.kind or DEFAULT
    try:
        kind = plugins.find(sys.modules[__name__], name, Task)  # type: ignore[type-abstract]
    except LookupError as error:
        raise RecipeError(f"task: {error.args[0]}", fix="Set task.kind to one of them.") from None
    return parse(kind, spec.options, where=f"task {name}")
