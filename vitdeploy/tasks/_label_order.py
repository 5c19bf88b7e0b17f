"""Test if a model's answers follow the labels of the data, or follow them in another order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitdeploy.session import Array

P_VALUE = 0.001
"""The level of the two tests. An order that is right is doubted in fewer than one of 1,000 evaluations."""
_SHUFFLES = 1000  # the fewest whose p-value, 1 / 1001, is below the level
_SHOWN = 3


@dataclass(frozen=True)
class OtherOrder:
    """Labels that the model gives another class than they stand for.

    Attributes:
        pairs: a label of the data, and the model's class that explains its images better.
        right: the share of all samples whose answer is their label.
        right_if: that share if the labels of `pairs` were those classes.
    """

    pairs: tuple[tuple[int, int], ...]
    right: float
    right_if: float

    def describe(self, names: Sequence[str] | None) -> str:
        """Return the doubt in words, with the names of the classes if they are known."""

        def name(index: int) -> str:
            return repr(names[index]) if names is not None and index < len(names) else str(index)

        shown = ", ".join(f"{name(label)} were the model's {name(other)}" for label, other in self.pairs[:_SHOWN])
        more = f", and {len(self.pairs) - _SHOWN} more" if len(self.pairs) > _SHOWN else ""
        return (
            f"the labels seem to be in another order than the model's: {100 * self.right:.1f} % are right, but "
            f"{100 * self.right_if:.1f} % would be right if {shown}{more} (p < {P_VALUE:g}): name the sub-folders by "
            "the model's labels or class indices"
        )


def find_other_order(answers: Array, truth: Array) -> OtherOrder | None:
    """Return the assignment of labels to classes that explains the answers better than the labels themselves do.

    The assignment with the most right answers is found (Kuhn 1955, the Hungarian method). It falls into groups of
    labels that change places. A group counts if more of its images follow it than follow the labels, by a sign test. As
    the best of all assignments always gains something, the gain must also exceed what it is if the wrong answers are
    shuffled among the images that have one (permutation test).

    Args:
        answers: the model's class of each sample, (n,).
        truth: the label of each sample, (n,).
    """
    from scipy.stats import binomtest

    table = _Table.count(answers, truth)
    chosen = table.assign()
    pairs: list[tuple[int, int]] = []
    gain = 0
    for rows in table.groups(chosen):
        now, then = int(table.hits[rows].sum()), int(table.counts[rows, chosen[rows]].sum())
        if then > now and binomtest(then, now + then, 0.5, alternative="greater").pvalue < P_VALUE:
            pairs += [(int(table.labels[row]), int(table.classes[chosen[row]])) for row in rows]
            gain += then - now
    if not pairs or not _exceeds_chance(gain, answers, truth):
        return None
    right = float((answers == truth).mean())
    return OtherOrder(tuple(sorted(pairs)), right, right + gain / len(truth))


def _exceeds_chance(gain: int, answers: Array, truth: Array) -> bool:
    """Return False if an assignment gains as much after one of the shuffles.

    A shuffled answer that hits its label counts for no assignment: the labels do not get better by shuffling.
    """
    generator = np.random.default_rng(0)
    wrong = np.flatnonzero(answers != truth)
    shuffled, table = answers.copy(), _Table.count(answers, truth)
    for _ in range(_SHUFFLES):
        shuffled[wrong] = generator.permutation(answers[wrong])
        other = _Table.count(shuffled, truth).with_hits(table.hits)
        if other.most_gain() >= gain and other.gain() >= gain:  # the first is quick, and never below the second
            return False
    return True


@dataclass(frozen=True)
class _Table:
    """The number of times that each class was the answer to the samples of each label.

    Attributes:
        labels: the labels that occur, (rows,).
        classes: the labels and answers that occur, (columns,).
        counts: (rows, columns).
        own: the column of each label's own class, (rows,).
    """

    labels: Array
    classes: Array
    counts: Array
    own: Array

    @classmethod
    def count(cls, answers: Array, truth: Array) -> _Table:
        labels, rows = np.unique(truth, return_inverse=True)
        classes, places = np.unique(np.concatenate([labels, answers]), return_inverse=True)
        own, columns = places[: len(labels)], places[len(labels) :]
        counts = np.bincount(rows * len(classes) + columns, minlength=len(labels) * len(classes))
        return cls(labels, classes, counts.reshape(len(labels), len(classes)), own)

    @property
    def hits(self) -> Array:
        """The number of right answers of each label."""
        return self.counts[np.arange(len(self.labels)), self.own]

    def assign(self) -> Array:
        """Return a column for each row, each another one, with the most answers in all; of equals the labels' own."""
        from scipy.optimize import linear_sum_assignment

        weights = self.counts.astype(np.float64) * (len(self.labels) + 1)
        weights[np.arange(len(self.labels)), self.own] += 1
        return np.asarray(linear_sum_assignment(weights, maximize=True)[1])

    def with_hits(self, hits: Array) -> _Table:
        """Return the table with other numbers of right answers."""
        counts = self.counts.copy()
        counts[np.arange(len(self.labels)), self.own] = hits
        return replace(self, counts=counts)

    def gain(self) -> int:
        """Return how many more answers the best assignment explains than the labels."""
        chosen = self.assign()
        return int(self.counts[np.arange(len(chosen)), chosen].sum() - self.hits.sum())

    def most_gain(self) -> int:
        """Return a bound of `gain`: the most frequent answer of each label, even if another has it too."""
        return int(self.counts.max(axis=1).sum() - self.hits.sum())

    def groups(self, chosen: Array) -> Iterator[Array]:
        """Yield the rows that an assignment moves, those together that take each other's classes."""
        moved = np.flatnonzero(chosen != self.own)
        owner = {int(self.own[row]): int(row) for row in moved}
        taken_by = {int(chosen[row]): int(row) for row in moved}
        left = {int(row) for row in moved}
        while left:
            group, todo = set(), [min(left)]
            while todo:
                row = todo.pop()
                if row in left:
                    left.discard(row)
                    group.add(row)
                    todo += [
                        r for r in (owner.get(int(chosen[row])), taken_by.get(int(self.own[row]))) if r is not None
                    ]
            yield np.array(sorted(group))
