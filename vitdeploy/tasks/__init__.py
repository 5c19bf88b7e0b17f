"""What a model is for: one task a file.

A task turns outputs and labels into numbers of each sample, so that two models can be compared pair by pair.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vitdeploy import plugins
from vitdeploy.errors import RecipeError
from vitdeploy.recipe import Frozen, TaskSpec, parse
from vitdeploy.session import Array


@dataclass(frozen=True)
class PerSample:
    """Statistics of one batch, sample by sample.

    Attributes:
        values: metric -> a number for each sample, shape (n,); the first metric is the one that gates look at.
        prediction: what the model said, shape (n, …); a sample whose prediction differs between two models is a flip.
    """

    values: Mapping[str, Array]
    prediction: Array


class Task(Frozen, ABC):
    """Frozen options, and how its metrics come about."""

    units: ClassVar[Mapping[str, str]] = {}
    """Metric -> unit of its drop."""

    @abstractmethod
    def statistics(self, outputs: Mapping[str, Array], labels: Array) -> PerSample:
        """The numbers of each sample of one batch.

        Raises:
            DataError: the outputs are not of this task, or the labels do not fit them.
        """

    @abstractmethod
    def aggregate(self, statistics: PerSample) -> Mapping[str, float]:
        """The metrics over all samples, in their unit."""


def find(spec: TaskSpec) -> Task:
    """The task of a recipe, its options validated.

    Raises:
        RecipeError: there is no such task, or it has no such option.
    """
    try:
        kind = plugins.find(sys.modules[__name__], spec.kind, Task)  # type: ignore[type-abstract]
    except LookupError as error:
        raise RecipeError(f"task: {error.args[0]}", fix="Set task.kind to one of them.") from None
    return parse(kind, spec.options, where=f"task {spec.kind}")
