"""Bounds of groups with few samples, and of what is found at a threshold: never a certainty that nobody has."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from vitdeploy.measure.groups import compare_groups, score_classes, split_classes
from vitdeploy.measure.operating import compare_at
from vitdeploy.measure.samples import Outcomes
from vitdeploy.session import Array
from vitdeploy.tasks.classification import Classification
from vitdeploy.tasks.depth import Depth


def pair(reference: dict[str, Array], deployed: dict[str, Array]) -> Outcomes:
    n = len(next(iter(reference.values())))
    return Outcomes(
        digest=np.arange(n, dtype=np.uint64), reference=reference, deployed=deployed,
        agreement=np.ones(n), finite=np.ones(n, bool),
    )  # fmt: skip


def test_a_group_of_one_image_has_wide_bounds() -> None:
    task = Depth()
    n, metric = 40, next(iter(Depth.units))
    values = {name: np.full(n, 0.1) for name in task.units}
    outcomes = pair(values, {name: side.copy() for name, side in values.items()})
    one, rest = np.arange(n) == 0, np.arange(n) > 0
    small, large = sorted(compare_groups(task, outcomes, {"one": one, "rest": rest}), key=lambda group: group.n)
    z = NormalDist().inv_cdf(1 - 0.05 / 2)
    assert metric in values
    assert small.upper - small.drop == pytest.approx(100 * z * z / (1 + z * z))
    assert small.drop - small.lower == pytest.approx(small.upper - small.drop)
    assert 0 < large.upper - large.drop < small.upper - small.drop


def test_the_count_at_a_threshold_is_of_the_images_with_findings() -> None:
    found = 3
    confidence = np.where(np.arange(1000) < found, 0.9, 0.1)
    side = {"top1": np.ones(1000), "confidence": confidence}
    point = compare_at(Classification(), pair(side, side), 0.5)
    assert point.count is not None
    z = NormalDist().inv_cdf(0.975)
    assert point.count.ci95[1] >= math.exp(z * z / (found + z * z))


def test_classes_that_share_a_name_stay_apart() -> None:
    side = {"label": np.array([0, 1, 1, 2, 3]), "top1": np.array([1.0, 1, 0, 0, 1])}
    outcomes, names = pair(side, side), ("crane", "owl", "crane")  # the model has a fourth class without a name
    groups = split_classes(Classification(), outcomes, names)
    assert {name: int(chosen.sum()) for name, chosen in groups.items()} == {
        "crane (0)": 1, "owl": 2, "crane (2)": 1, "3": 1,
    }  # fmt: skip
    assert [(score.name, score.reference) for score in score_classes(Classification(), outcomes, names)] == [
        ("crane (0)", 100), ("owl", 50), ("crane (2)", 0), ("3", 100),
    ]  # fmt: skip
