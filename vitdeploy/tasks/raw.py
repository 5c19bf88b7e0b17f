"""Any other task: the outputs are named and compared as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from vitdeploy.data.labels import Label
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer, OutputNumbers
from vitdeploy.session import Array
from vitdeploy.tasks import PerSample, Task, Values, WeightedMetrics, find_batched

_PERCENT = 100.0

SAMPLED = 4096
"""The most numbers of an output that are compared for an image, evenly spaced: maps of 200 images would fill memory."""


class Raw(Task):
    """The outputs of a model that no other task reads. It invents no metric: it has only the distance to the reference.

    The difference of two answers is |a - b| / |a| of the output in which it is largest, with the Euclidean norm over
    the numbers of an image. An output that is 0 on both sides does not differ. Labels are not needed.
    """

    metric_names: ClassVar[Mapping[str, str]] = {"difference": "difference to the reference"}
    units: ClassVar[Mapping[str, str]] = {"difference": "%"}
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"difference"})
    named_classes: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    flip_below: ClassVar[float] = 0.99

    def read_answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """Return the numbers of each image: (outputs, numbers), each row filled up with NaN."""
        rows = [_sample(outputs[name]) for name in sorted(self.select_outputs(outputs))]
        longest = max(row.shape[1] for row in rows)
        answers = np.full((len(rows[0]), len(rows), longest), np.nan)
        for number, row in enumerate(rows):
            answers[:, number, : row.shape[1]] = row
        return list(answers)

    def select_outputs(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs whose first axis is the one that most of them have: the batch.

        Raises:
            DataError: there is none.
        """
        filled = {name: value for name, value in outputs.items() if value.ndim and value.size}
        if not filled:
            raise DataError("no output has a row for each image", fix="Give a model that returns tensors (batch, …).")
        ((batch, _),) = Counter(len(value) for value in filled.values()).most_common(1)
        return find_batched(filled, batch)

    def choose_outputs(self, outputs: Mapping[str, Array]) -> tuple[str, ...]:
        """Return all outputs: nothing tells which of them are needed."""
        return tuple(outputs)

    def compare_pair(self, reference: Array, deployed: Array) -> float:
        """Return 1 minus the difference, and 0 from a difference of 100 % on."""
        return max(0.0, 1.0 - _difference(reference, deployed))

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:  # noqa: ARG002
        """Return the numbers of each image. The difference needs those of both sides."""
        answers = self.read_answers(outputs)
        return PerSample({"numbers": np.stack(answers)}, answers, self.find_finite_answers(outputs))

    def pair_statistics(self, reference: Values, deployed: Values) -> tuple[Values, Values]:
        """Return the difference of each image. The reference differs by 0 from itself.

        Raises:
            DataError: the outputs of the two sides are not of the same shapes.
        """
        first, second = reference["numbers"], deployed["numbers"]
        if first.shape != second.shape:
            raise DataError("the outputs of both models have other shapes", fix="Compare artifacts of one model.")
        differences = np.array([_difference(a, b) for a, b in zip(first, second, strict=True)])
        return {"difference": np.zeros(len(first))}, {"difference": differences}

    def weighted_metrics(self, values: Values) -> WeightedMetrics:
        """Return a function for the mean over images, in percent."""
        return lambda weights: {"difference": _PERCENT * float(np.average(values["difference"], weights=weights))}

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,  # noqa: ARG002  what the numbers mean is not known
        view: tuple[float, float, float, float],  # noqa: ARG002
        picture: tuple[int, int] | None = None,  # noqa: ARG002
    ) -> Answer:
        """Return the shape and the range of each output."""
        chosen = self.select_outputs(outputs)
        return Answer(outputs=tuple(_summarize(name, value[0]) for name, value in chosen.items()))

    def format_answer(self, answer: Answer) -> list[str]:
        """Return a line for each output."""
        return [
            f"{output.name}  {' x '.join(map(str, output.shape)) or 'one number'}: {output.smallest:.4g} to "
            f"{output.largest:.4g}, mean {output.mean:.4g}"
            for output in answer.outputs
        ]


def _sample(output: Array) -> Array:
    """Return at most `SAMPLED` numbers of each image, (batch, numbers) float64."""
    rows = output.reshape(len(output), -1)
    step = -(-rows.shape[1] // SAMPLED)
    return np.asarray(rows[:, ::step], np.float64)


def _difference(reference: Array, deployed: Array) -> float:
    """Return the relative difference of the output in which it is largest; 1 if a number is not finite."""
    filled = np.isnan(reference) & np.isnan(deployed)
    pair = [np.where(filled, 0.0, numbers) for numbers in (reference, deployed)]
    if not all(np.isfinite(numbers).all() for numbers in pair):
        return 1.0
    distance, length = (np.sqrt((numbers**2).sum(axis=1)) for numbers in (pair[0] - pair[1], pair[0]))
    shares = np.divide(distance, length, out=np.where(distance > 0, 1.0, 0.0), where=length > 0)
    return float(shares.max())


def _summarize(name: str, output: Array) -> OutputNumbers:
    numbers = np.asarray(output, np.float64)
    return OutputNumbers(
        name=name,
        shape=tuple(numbers.shape),
        smallest=float(numbers.min()),
        largest=float(numbers.max()),
        mean=float(numbers.mean()),
    )
