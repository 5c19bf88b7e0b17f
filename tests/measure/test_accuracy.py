"""Two models on the same samples: Tango and McNemar for shares, a paired bootstrap for everything else."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy import tasks
from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Eval
from vitdeploy.measure.accuracy import compare_accuracy
from vitdeploy.measure.statistics import paired_drop
from vitdeploy.recipe import TaskSpec
from vitdeploy.session import Array
from vitdeploy.tasks import Task, Values

TOP1 = np.array([1, 1, 1, 1, 0, 0, 1, 1, 1, 1])
OTHER = np.array([1, 1, 0, 0, 0, 1, 1, 1, 1, 1])
LABELS = np.arange(10) % 5
ALIKE = np.array([1, 1, 0, 0, 0, 0, 1, 1, 1, 1.0])


def _task(kind: str = "classification") -> Task:
    return tasks.find(TaskSpec(kind=kind))


def _outcomes(top1: Array, top5: Array | None = None) -> Values:
    values = {"top1": top1, "top5": np.ones(len(top1)) if top5 is None else top5}
    return {**values, "answer": LABELS[: len(top1)], "label": LABELS[: len(top1)]}


def test_metrics_in_points_with_flips_and_agreement() -> None:
    found = compare_accuracy("classification", _task(), _outcomes(TOP1), _outcomes(OTHER), ALIKE)
    top1 = found.metrics["top1"]
    assert (top1.reference, top1.deployed) == (pytest.approx(80), pytest.approx(70))
    assert (top1.drop, top1.unit, top1.better) == (pytest.approx(10), "points", "higher")
    assert top1.upper95 == pytest.approx(100 * paired_drop(TOP1, OTHER).upper95)
    assert top1.ci95[0] < top1.lower95 < 10 < top1.upper95 < top1.ci95[1]
    # Sample 4 is wrong on both sides, in different ways: a flip that top-1 hides.
    assert (found.n, found.flips, found.agreement) == (10, 4, pytest.approx(0.6))
    assert found.discordance == pytest.approx(0.3)
    assert (found.p_value, found.test) == (pytest.approx(1.0), "McNemar")  # 2 against 1: the most likely outcomes
    assert found.metrics["top5"].drop == 0
    assert list(found.metrics) == ["top1", "top5"]
    assert Eval.model_validate_json(found.model_dump_json()) == found


def test_a_metric_of_the_whole_corpus() -> None:
    rng = np.random.default_rng(0)
    there = rng.integers(20, 200, (60, 4))
    first = rng.binomial(there, 0.9)
    second = rng.binomial(first, 0.95)
    sides = [{"counts": np.stack([right, right + np.roll(there - right, 1, 1), there], 2)} for right in (first, second)]
    alike = rng.uniform(0.98, 1, 60)
    found = compare_accuracy("segmentation", _task("segmentation"), sides[0], sides[1], alike, nonfinite=2)
    task = _task("segmentation")
    miou = found.metrics["miou"]
    assert miou.reference == task.aggregate(sides[0])["miou"]
    assert miou.deployed == task.aggregate(sides[1])["miou"]
    assert miou.drop == pytest.approx(miou.reference - miou.deployed)
    assert miou.lower95 < miou.drop < miou.upper95
    assert miou.upper95 - miou.lower95 < 2  # paired: alone, either side varies much more
    assert (found.p_value, found.test, found.nonfinite) == (0.001, "swaps", 2)
    assert found.flips == (alike < 0.99).sum()
    assert found.agreement == pytest.approx(alike.mean())


def test_the_discordance_gives_the_samples_that_a_mean_needs() -> None:
    """`required_samples` takes it as the variance of what one sample changes, whatever the metric."""
    rng = np.random.default_rng(1)
    ratio, rmse = np.ones(400), np.ones(400)
    first = rng.uniform(80, 90, 400)
    lost = rng.normal(5, 5, 400)
    sides = [{"delta1": d, "abs_rel": d / 10, "rmse": rmse, "ratio": ratio} for d in (first, first - lost)]
    found = compare_accuracy("depth", _task("depth"), sides[0], sides[1], np.ones(400))
    assert found.discordance == pytest.approx(np.mean((lost / 100) ** 2), rel=0.1)  # variance and mean alike
    assert found.metrics["delta1"].drop == pytest.approx(lost.mean())
    assert found.metrics["abs_rel"].drop == pytest.approx(-lost.mean() / 10)  # an error that fell
    assert found.metrics["abs_rel"].better == "lower"
    assert found.metrics["rmse"].unit == "m"


def test_differing_samples_are_counted_for_each_metric() -> None:
    """Every image's RMSE moves a little; not one pixel crosses δ1's threshold, and its interval must not be a point."""
    rng = np.random.default_rng(2)
    delta1, rmse = rng.uniform(80, 90, 40), rng.random(40)
    sides = [{"delta1": delta1, "abs_rel": r, "rmse": r, "ratio": np.ones(40)} for r in (rmse, rmse + 1e-6)]
    found = compare_accuracy("depth", _task("depth"), sides[0], sides[1], np.ones(40)).metrics
    assert found["delta1"].upper95 == pytest.approx(100 * 1.6448536**2 / (40 + 1.6448536**2))
    assert found["rmse"].upper95 < 1e-5


def test_one_sample_can_lose_as_much_as_the_largest_error_of_either_side() -> None:
    """The RMSE of one image of 40 grows from 0.1 to 4 m: the next images might do the same."""
    small, delta1 = np.full(40, 0.1), np.full(40, 85.0)
    large = np.where(np.arange(40) == 3, 4.0, small)
    sides = [{"delta1": delta1, "abs_rel": small, "rmse": rmse, "ratio": np.ones(40)} for rmse in (small, large)]
    for reference, deployed in (sides, sides[::-1]):
        found = compare_accuracy("depth", _task("depth"), reference, deployed, np.ones(40)).metrics["rmse"]
        assert found.upper95 - found.drop >= 4 * 1.6448536**2 / (40 + 1.6448536**2) - 1e-9


def test_scores_that_only_rounding_moved_are_no_difference() -> None:
    rng = np.random.default_rng(3)
    score = -np.sort(-rng.random((40, 6)))
    hit = np.where(rng.random((40, 6)) < 0.3, 1023, 0).astype(np.uint16)
    rest = {
        "class": np.zeros((40, 6), np.int32), "hit": hit, "ignored": np.zeros_like(hit),
        "objects": (hit > 0).sum(axis=1, keepdims=True) + 1,
    }  # fmt: skip
    sides = [{"score": score, **rest}, {"score": score * (1 - 1e-7), **rest}]
    found = compare_accuracy("detection", _task("detection"), sides[0], sides[1], np.ones(40)).metrics["map"]
    assert found.drop == 0 < found.reference
    assert found.upper95 == pytest.approx(100 * 1.6448536**2 / (40 + 1.6448536**2))


def test_doubts_about_the_reference_are_reported() -> None:
    values = {**_outcomes(TOP1), "label": np.zeros(10, int)}
    assert "every label is class 0" in compare_accuracy("classification", _task(), values, values, ALIKE).doubts[0]


@pytest.mark.parametrize(
    ("reference", "deployed", "agreement", "match"),
    [
        ({}, {}, ALIKE, "different statistics"),
        (_outcomes(TOP1), {"top1": TOP1}, ALIKE, "different statistics"),
        (_outcomes(TOP1[:0]), _outcomes(TOP1[:0]), ALIKE[:0], "no sample"),
        (_outcomes(TOP1), _outcomes(TOP1[:5]), ALIKE, "different samples"),
        (_outcomes(TOP1), _outcomes(TOP1), ALIKE[:5], "different samples"),
        (_outcomes(TOP1), _outcomes(TOP1[:, None]), ALIKE, "different samples"),
        (_outcomes(TOP1), _outcomes(TOP1 * 0.5), ALIKE, "0 or 1"),
    ],
)
def test_refuses_sides_that_are_no_pair(reference: Values, deployed: Values, agreement: Array, match: str) -> None:
    with pytest.raises(MeasureError, match=match) as error:
        compare_accuracy("classification", _task(), reference, deployed, agreement)
    assert error.value.fix
