"""Tasks, one file each, found by its name.

A task reads answers from a model's outputs, so that two models can be compared without labels. With labels it computes
statistics for each sample, and metrics from them. Two models are compared by the metrics of the same samples, which
are resampled in pairs.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from vitdeploy import plugins
from vitdeploy.data.dataset import Form
from vitdeploy.data.labels import Label
from vitdeploy.errors import DataError, RecipeError
from vitdeploy.evidence.predictions import Answer
from vitdeploy.evidence.reading import PostProcessing
from vitdeploy.recipe import Frozen, TaskSpec, parse
from vitdeploy.session import Array

Values = Mapping[str, Array]
"""Statistics by name, each of shape (samples, …)."""

WeightedMetrics = Callable[[Array], dict[str, float]]
"""A function from the weight of each sample, shape (samples,), to the metrics. NaN: not defined for these samples."""

DEFAULT = "classification"


@dataclass(frozen=True)
class PerSample:
    """Statistics and answers for each sample of a batch.

    Attributes:
        values: the statistics that metrics are computed from.
        answers: the model's answers.
        finite: bool (n,): True if the outputs for the sample that the task reads have no NaN and no infinity.
    """

    values: Values
    answers: Sequence[Array]
    finite: Array


class Task(Frozen, ABC):
    """A task: its options as fields, its answers and its metrics. Gates check the first metric."""

    data: ClassVar[Form] = "classes"
    """The form of its labels: see `vitdeploy.data.dataset`."""
    units: ClassVar[Mapping[str, str]] = {}
    """Metric -> unit of its drop. A metric in "points" goes from 0 to 100."""
    binary: ClassVar[frozenset[str]] = frozenset()
    """Metrics that are the percentage of ones in the statistic of the same name, which is 0 or 1 for each sample."""
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    """Metrics of errors. Their drop is deployed - reference, so that above 0 is always worse."""
    ranking_only: ClassVar[frozenset[str]] = frozenset()
    """Statistics used only for ranking. A difference by rounding is not a difference of the metric."""
    flip_below: ClassVar[float] = 1.0
    """Two answers whose agreement is below this are a flip."""
    metric_names: ClassVar[Mapping[str, str]] = {}
    """Metric -> its name for people."""
    named_classes: ClassVar[bool] = True
    """True if labels are classes of the model, which data is matched with by name."""
    needs_labels: ClassVar[bool] = True
    """True if its metrics compare answers with labels."""
    agreement_name: ClassVar[str] = "agreement"
    """The name for people of the agreement of two models."""

    @property
    def name(self) -> str:
        """The name that users write."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @abstractmethod
    def read_answers(self, outputs: Mapping[str, Array]) -> Sequence[Array]:
        """Read the model's answer to each sample of a batch: a class, a map of classes, boxes, or a vector.

        Raises:
            DataError: the outputs are not of this task.
        """

    def select_outputs(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs that this task reads; the first axis of each is the batch. By default that is all of them.

        A model may have others, such as the hidden states of all layers: (layers, batch, tokens, size).

        Raises:
            DataError: the outputs are not of this task.
        """
        return dict(outputs)

    def choose_outputs(self, outputs: Mapping[str, Array]) -> tuple[str, ...]:
        """Return the names of the outputs that a deployed model needs for this task; all if it cannot read them.

        Args:
            outputs: all outputs of the model, for one batch.
        """
        try:
            selected = self.select_outputs(outputs)
            self.read_answers(selected)
            return tuple(selected)
        except DataError:  # `eval` and `predict` say why
            return tuple(outputs)

    def find_finite_answers(self, outputs: Mapping[str, Array]) -> Array:
        """Return bool (n,): True for samples without NaN and infinity in the outputs that this task reads."""
        return find_finite_samples(self.select_outputs(outputs))

    @abstractmethod
    def compare_pair(self, reference: Array, deployed: Array) -> float:
        """Return the agreement of two answers to one sample, from 0 to 1."""

    def compare_outputs(self, reference: Mapping[str, Array], deployed: Mapping[str, Array]) -> Array:
        """Return the agreement of two models' outputs for each sample of a batch: (n,), from 0 to 1. Needs no labels.

        It is 0 for a sample for which either model gave NaN or infinity.

        Raises:
            DataError: the outputs are not of this task, or not of the same samples.
        """
        answers = self.read_answers(reference), self.read_answers(deployed)
        usable = self.find_finite_answers(reference), self.find_finite_answers(deployed)
        return self.compare_answers(*answers, usable)

    def compare_answers(
        self, reference: Sequence[Array], deployed: Sequence[Array], finite: tuple[Array, Array]
    ) -> Array:
        """Return the agreement of answers that `read_answers` returned; see `compare_outputs`."""
        if len(reference) != len(deployed):
            raise DataError(
                f"{len(reference)} and {len(deployed)} answers are not pairs", fix="Give both models the same batch."
            )
        pairs = zip(reference, deployed, finite[0] & finite[1], strict=True)
        return np.array([self.compare_pair(a, b) if usable else 0.0 for a, b, usable in pairs], dtype=np.float64)

    @abstractmethod
    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """Compute statistics for each sample of a batch. Outputs with NaN or infinity count as wrong.

        Raises:
            DataError: the outputs are not of this task, or the labels do not fit them.
        """

    @abstractmethod
    def weighted_metrics(self, values: Values) -> WeightedMetrics:
        """Return a function from sample weights to metrics. It is made once, and called for each resample."""

    def aggregate(self, values: Values) -> dict[str, float]:
        """Compute the metrics over all samples, with equal weights.

        Raises:
            DataError: there are no samples, or none that a metric is defined for.
        """
        count = len(next(iter(values.values()), ()))
        if not count:
            raise DataError("there are no samples", fix="Give data with images.")
        metrics = self.weighted_metrics(values)(np.ones(count))
        undefined = [name for name, value in metrics.items() if np.isnan(value)]
        if undefined:
            raise DataError(f"{undefined[0]} is not defined: no label to compare with", fix="Give labelled data.")
        return metrics

    def pair_statistics(self, reference: Values, deployed: Values) -> tuple[Values, Values]:
        """Add statistics that need all samples or both models; called once, with the statistics of all samples."""
        return reference, deployed

    def find_doubts(self, values: Values, names: Sequence[str] | None = None) -> list[str]:  # noqa: ARG002
        """Return reasons to distrust the metrics of the reference: labels in another order, only one class.

        Args:
            values: statistics of the reference.
            names: the names of the classes, for the reasons.
        """
        return []

    def count_classes(self, shapes: Mapping[str, tuple[int | str, ...]]) -> int | None:  # noqa: ARG002
        """Return the number of classes of a model whose outputs have these shapes; None if that does not say it."""
        return None

    def at_threshold(self, values: Values, threshold: float) -> Values | None:  # noqa: ARG002
        """Return what is found at a fixed threshold of the score; None if the task's answers have no score.

        Returns:
            For each sample the right findings ("hits"), all findings ("found"), and what is to be found ("wanted").
        """
        return None

    def find_groups(self, values: Values) -> Array | None:  # noqa: ARG002
        """Return the class of each sample, (n,); None if a sample does not have one class."""
        return None

    def summarize_answer(self, answer: Array, names: Sequence[str] | None) -> str:  # noqa: ARG002
        """Return an answer of `read_answers` in a few words; an empty string if it has none."""
        return ""

    @abstractmethod
    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,
        view: tuple[float, float, float, float],
        picture: tuple[int, int] | None = None,
    ) -> Answer:
        """Return the answer to the first sample of a batch.

        Args:
            outputs: the model's outputs.
            labels: the model's class names.
            view: top, left, bottom and right of the area that the model sees, in pixels of the image.
            picture: height and width of the image, if it was padded: the view is then larger. None if it was not.

        Raises:
            DataError: the outputs are not of this task.
        """

    @abstractmethod
    def format_answer(self, answer: Answer) -> list[str]:
        """Return an answer of `describe` as lines for people."""

    def map_pixels(
        self,
        outputs: Mapping[str, Array],  # noqa: ARG002  most tasks have no answer for each pixel
        view: tuple[float, float, float, float],  # noqa: ARG002
        picture: tuple[int, int],  # noqa: ARG002
    ) -> Array | None:
        """Return the answer for each pixel of the first image that the model saw, (h, w); None if there is none.

        Args:
            outputs: the model's outputs.
            view: top, left, bottom and right of the area that the model sees, in pixels of the image.
            picture: height and width of the image.
        """
        return None

    def are_right(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> Array | None:  # noqa: ARG002
        """Return 1 for each right answer and 0 for each wrong one; None if the task's answers are neither."""
        return None

    def describe_reading(self, shapes: Mapping[str, tuple[int | str, ...]]) -> PostProcessing | None:  # noqa: ARG002
        """Return the steps from outputs of these shapes to answers, as numbers; None if numbers do not say it."""
        return None

    def describe_output(self, shape: tuple[int | str, ...], labels: tuple[str, ...] | None) -> str:  # noqa: ARG002
        """Describe the numbers of an output for programs that read it; an empty string if they are unknown."""
        return ""


def find_batched(outputs: Mapping[str, Array], batch: int) -> dict[str, Array]:
    """Return the outputs with a row for each image of a batch. If there is none, return all, for the task to refuse."""
    batched = {name: value for name, value in outputs.items() if value.ndim and len(value) == batch}
    return batched or dict(outputs)


def find_finite_samples(outputs: Mapping[str, Array]) -> Array:
    """Return bool (n,): True for samples without NaN and infinity in any floating-point output.

    The first axis of every output is the batch.
    """
    checked = [np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in outputs.values() if _is_floating(a)]
    finite: Array = np.logical_and.reduce(checked) if checked else np.ones(_count_samples(outputs), dtype=bool)
    return finite


def check_count(answers: int, labels: Sequence[Label]) -> None:
    """Raise an error unless a batch has one label for each answer."""
    if answers != len(labels):
        raise DataError(f"{answers} predictions for {len(labels)} labels", fix="Give every image one label.")


def class_name(index: int, labels: tuple[str, ...] | None) -> str:
    """Return the name of a class, or its index if it has none."""
    return labels[index] if labels is not None and 0 <= index < len(labels) else str(index)


def format_share(share: float, label: str) -> str:
    """Format a share from 0 to 1 in percent, with a name."""
    return f"{100 * share:5.1f} %  {label}"


def _is_floating(array: Array) -> bool:
    return array.ndim > 0 and bool(np.issubdtype(array.dtype, np.floating))


def _count_samples(outputs: Mapping[str, Array]) -> int:
    return len(next(iter(outputs.values()))) if outputs else 0


def resolve(requested: TaskSpec, models: TaskSpec | None) -> TaskSpec:
    """Return the requested task; else the model's, else classification. The model's options are its defaults.

    Raises:
        RecipeError: there is no such task, or it has no such option.
    """
    kind = requested.kind or (models.kind if models is not None else None) or DEFAULT
    options = models.options if models is not None and models.kind == kind else {}
    spec = TaskSpec.model_validate({**options, **requested.options, "kind": kind})
    find(spec)
    return spec


def kind_of(name: str) -> type[Task] | None:
    """Return the class of a task; None if this version does not know it."""
    try:
        return plugins.find(sys.modules[__name__], name, Task)  # type: ignore[type-abstract]
    except LookupError:
        return None


@cache
def metric_names() -> dict[str, str]:
    """Return the names for people of all tasks' metrics."""
    kinds = [kind_of(name) for name in plugins.names(sys.modules[__name__])]
    return {metric: name for kind in kinds if kind is not None for metric, name in kind.metric_names.items()}


def find(spec: TaskSpec) -> Task:
    """Return the task of a recipe, with validated options.

    Raises:
        RecipeError: there is no such task, or it has no such option.
    """
    name = spec.kind or DEFAULT
    try:
        kind = plugins.find(sys.modules[__name__], name, Task)  # type: ignore[type-abstract]
    except LookupError as error:
        raise RecipeError(f"task: {error.args[0]}", fix="Set task.kind to one of them.") from None
    return parse(kind, spec.options, where=f"task {name}")
