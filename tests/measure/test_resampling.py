"""Intervals of the drop of any metric: their coverage, and their least width."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from vitdeploy.measure import resampling
from vitdeploy.measure.resampling import Metrics, paired_drops, swap_p_value
from vitdeploy.session import Array

ONE = {"signs": {"m": 1.0}, "spans": {"m": 100.0}}


def mean(values: Array) -> Metrics:
    return lambda weights: {"m": float(np.average(values, weights=weights))}


def mean_iou(counts: Array) -> Metrics:
    """mIoU of (images, classes, 3) counts."""

    def weigh(weights: Array) -> Mapping[str, float]:
        both, predicted, there = np.tensordot(weights, counts, axes=1).T
        union = predicted + there - both
        return {"m": 100 * float((both[union > 0] / union[union > 0]).mean())}

    return weigh


def images(rng: np.random.Generator, n: int, error: float) -> tuple[Array, Array]:
    """Counts of n images under two models; classes are rarer and rarer, and errors come in whole images."""
    truth = rng.multinomial(400, [0.5, 0.3, 0.15, 0.05], size=n) * (rng.random((n, 4)) < [1, 0.8, 0.5, 0.3])
    hard = rng.beta(1, 4, size=(n, 1))
    first = rng.binomial(truth, 1 - 0.5 * hard)
    second = rng.binomial(first, 1 - error * rng.beta(1, 3, size=(n, 1)))
    wrong = [np.roll(truth - right, 1, axis=1) for right in (first, second)]  # confused with the next class
    sides = [np.stack([right, right + more, truth], axis=2) for right, more in zip((first, second), wrong, strict=True)]
    return sides[0], sides[1]


@pytest.mark.parametrize("n", [20, pytest.param(100, marks=pytest.mark.long)])
def test_the_interval_of_mean_iou_covers(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(resampling, "DRAWS", 300)
    rng = np.random.default_rng(0)
    first, second = (mean_iou(side) for side in images(rng, 100_000, 0.1))
    truth = first(np.ones(100_000))["m"] - second(np.ones(100_000))["m"]
    assert truth > 1
    found = []
    for _ in range(300):
        sides = images(rng, n, 0.1)
        found.append(paired_drops(mean_iou(sides[0]), mean_iou(sides[1]), n, differing={"m": n}, **ONE)["m"])
    # Three standard errors of 300 draws are 3.8 %.
    assert 0.91 <= np.mean([d.ci95[0] <= truth <= d.ci95[1] for d in found]) <= 0.99
    assert 0.91 <= np.mean([d.upper95 >= truth for d in found]) <= 0.99
    assert 0.91 <= np.mean([d.lower95 <= truth for d in found]) <= 0.99


def test_a_mean_has_the_interval_of_students_t() -> None:
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(1)
    first, second = rng.normal(80, 10, 12), rng.normal(78, 10, 12)
    found = paired_drops(mean(first), mean(second), 12, differing={"m": 12}, **ONE)["m"]
    expected = ttest_1samp(first - second, 0).confidence_interval(0.95)
    width = expected.high - expected.low
    assert found.drop == pytest.approx((first - second).mean())
    assert found.ci95 == pytest.approx((expected.low, expected.high), abs=0.1 * width)
    assert found.ci95[0] < found.lower95 < found.drop < found.upper95 < found.ci95[1]
    assert found.variance == pytest.approx((first - second).var(), rel=0.1)
    assert paired_drops(mean(first), mean(second), 12, differing={"m": 12}, **ONE)["m"] == found


def test_the_drop_of_an_error_is_its_growth() -> None:
    rng = np.random.default_rng(2)
    first = rng.random(50)
    found = paired_drops(mean(first), mean(first + 0.1), 50, differing={"m": 50}, signs={"m": -1.0}, spans={"m": 1.0})[
        "m"
    ]
    assert found.drop == pytest.approx(0.1)
    assert found.lower95 == pytest.approx(0.1)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_without_a_difference_the_interval_has_the_width_of_a_proportion(n: int) -> None:
    same = np.full(n, 70.0)
    found = paired_drops(mean(same), mean(same), n, differing={"m": 0}, **ONE)["m"]
    z = 1.6448536
    assert found.drop == 0
    assert found.upper95 == pytest.approx(100 * z * z / (n + z * z))
    assert found.lower95 == -found.upper95
    assert found.ci95[1] > found.upper95


def test_draws_for_which_a_metric_is_not_defined_are_left_out() -> None:
    labelled = np.array([1.0, 0, 0, 0])  # three of four images have no label

    def metric(value: float) -> Metrics:
        return lambda weights: {"m": value if weights @ labelled else np.nan}

    assert paired_drops(metric(50.0), metric(40.0), 4, differing={"m": 20}, **ONE)["m"].ci95 == (10, 10)
    with pytest.raises(ValueError, match="no samples"):
        paired_drops(metric(50.0), metric(40.0), 0, differing={"m": 0}, **ONE)


def test_swapping_sides_is_uniform_where_nothing_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "SWAPS", 99)
    rng = np.random.default_rng(3)
    p_values = [swap_p_value(mean(rng.normal(size=60)), "m", 30) for _ in range(300)]
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.09
    assert 0.42 <= np.mean(np.array(p_values) <= 0.5) <= 0.58


def test_swapping_sides_finds_a_difference() -> None:
    first = np.random.default_rng(4).normal(size=40)
    assert swap_p_value(mean(np.concatenate([first, first - 0.5])), "m", 40) == 0.001
    assert swap_p_value(mean(np.concatenate([first, first])), "m", 40) == 1


@pytest.mark.parametrize("n", [7, 300, 301])
def test_sums_in_another_order_are_no_difference(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(resampling, "SWAPS", 19)
    for seed in range(30):  # a third of them differ in the last bit, if the order counts
        same = np.random.default_rng(seed).uniform(80, 90, n)
        assert swap_p_value(mean(np.concatenate([same, same])), "m", n) == 1
        one = same.copy()
        one[3] -= 1  # one image alone is no evidence, however it is summed
        assert swap_p_value(mean(np.concatenate([same, one])), "m", n) == 1
