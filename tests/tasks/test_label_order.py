"""Labels in another order are found by the answers; a weak model in the right order is left alone."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from vitdeploy.session import Array
from vitdeploy.tasks._label_order import find_other_order


def _answers(classes: int, images: int, accuracy: float, seed: int) -> tuple[Array, Array]:
    """Answers of a model that mostly confuses neighbours, and the truth."""
    generator = np.random.default_rng(seed)
    truth = np.repeat(np.arange(classes), images)
    wrong = np.where(
        generator.random(len(truth)) < 0.5, (truth ^ 1) % classes, generator.integers(0, classes, len(truth))
    )
    return np.where(generator.random(len(truth)) < accuracy, truth, wrong), truth


@pytest.mark.parametrize(("classes", "images"), [(2, 20), (2, 200), (10, 5), (10, 100), (100, 5), (100, 10)])
@pytest.mark.parametrize("accuracy", [0.45, 0.6, 0.9])
def test_the_right_order_is_hardly_ever_doubted(classes: int, images: int, accuracy: float) -> None:
    found = [find_other_order(*_answers(classes, images, accuracy, seed)) for seed in range(8)]
    assert found == [None] * 8


@pytest.mark.parametrize(("classes", "images"), [(3, 20), (10, 20), (10, 100), (100, 10)])
def test_every_kind_of_wrong_order_is_found(classes: int, images: int) -> None:
    answers, truth = _answers(classes, images, 0.85, 0)
    generator = np.random.default_rng(0)
    swapped = np.arange(classes)
    swapped[[0, classes - 1]] = classes - 1, 0
    for order in (np.roll(np.arange(classes), 1), swapped, np.roll(swapped, 2), _derange(generator, classes)):
        other = find_other_order(answers, order[truth])
        assert other is not None
        assert dict(other.pairs) == {int(order[c]): c for c in range(classes) if order[c] != c}
        assert other.right_if == pytest.approx((answers == truth).mean())
        assert other.right == pytest.approx((answers == order[truth]).mean())


def _derange(generator: np.random.Generator, classes: int) -> Array:
    while True:
        order = generator.permutation(classes)
        if (order != np.arange(classes)).all():
            return order


def test_a_subset_that_was_numbered_from_0_is_found() -> None:
    answers, truth = _answers(10, 30, 0.9, 0)
    kept = np.isin(truth, (3, 5, 8))
    numbers = {3: 0, 5: 1, 8: 2}
    other = find_other_order(answers[kept], np.array([numbers[t] for t in truth[kept]]))
    assert other is not None
    assert other.pairs == ((0, 3), (1, 5), (2, 8))


def test_it_finds_the_best_of_all_assignments() -> None:
    """Against all 120 orders of five classes."""
    answers, truth = _answers(5, 40, 0.7, 3)
    order = np.array([4, 2, 1, 0, 3])
    other = find_other_order(answers, order[truth])
    best = max((np.array(p)[order[truth]] == answers).mean() for p in permutations(range(5)))
    assert other is not None
    assert other.right_if == pytest.approx(best)


def test_names_are_in_the_reason() -> None:
    answers, truth = _answers(3, 40, 0.9, 0)
    other = find_other_order(answers, np.array([1, 0, 2])[truth])
    assert other is not None
    assert "'cat' were the model's 'dog', 'dog' were the model's 'cat' (p < 0.001)" in other.describe(
        ("cat", "dog", "ant")
    )
    assert "0 were the model's 1" in other.describe(None)
