"""The two sides at a fixed threshold of the score. Applications use a threshold, not an average over all of them."""

from __future__ import annotations

import math

import numpy as np

from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Interval, Metric, OperatingPoint
from vitdeploy.measure.resampling import paired_drops
from vitdeploy.measure.samples import Outcomes
from vitdeploy.measure.statistics import Array
from vitdeploy.tasks import Task, Values, WeightedMetrics

_SCORE, _COUNT = "f1", "count"
_PERCENT = 100.0


def compare_at(task: Task, outcomes: Outcomes, threshold: float) -> OperatingPoint:
    """Compare what both sides find with scores of at least `threshold`, with paired bootstrap intervals.

    The score is F1 = 2 hits / (found + to be found), in percent. For a classifier, an image is found if the probability
    of its best class reaches the threshold, and it is a hit if that class is right.

    Raises:
        MeasureError: the task's answers have no score, or the samples were kept by a vitdeploy that did not keep it.
    """
    sides = [task.at_threshold(side, threshold) for side in (outcomes.reference, outcomes.deployed)]
    if sides[0] is None or sides[1] is None:
        raise MeasureError(
            f"a threshold has no meaning for {task.name}, or the samples have no scores",
            fix="Use it for detection or classification, and run vitdeploy eval again.",
        )
    reference, deployed = ({key: np.asarray(v, np.float64) for key, v in side.items()} for side in (sides[0], sides[1]))
    n = len(outcomes.digest)
    differing = int(sum((reference[key] != deployed[key]).astype(int) for key in ("hits", "found")).astype(bool).sum())
    found = (reference["found"] > 0) | (deployed["found"] > 0)
    counted = {_SCORE: int((found | (reference["wanted"] > 0)).sum()), _COUNT: int(found.sum())}
    drops = paired_drops(
        _metrics(reference), _metrics(deployed), n, signs={_SCORE: 1.0, _COUNT: 1.0},
        spans={_SCORE: _PERCENT, _COUNT: 1.0}, differing={_SCORE: differing, _COUNT: differing}, counted=counted,
    )  # fmt: skip
    score, count = drops[_SCORE], drops[_COUNT]
    counts = int(reference["found"].sum()), int(deployed["found"].sum())
    ratio = None
    if min(counts) > 0:
        low, high = -count.ci95[1], -count.ci95[0]
        point = counts[1] / counts[0]
        ratio = Interval(ratio=point, ci95=(min(point, math.exp(low)), max(point, math.exp(high))))
    metric = Metric(
        reference=score.reference, deployed=score.deployed, drop=score.drop, unit="points", ci95=score.ci95,
        lower95=score.lower95, upper95=score.upper95,
    )  # fmt: skip
    return OperatingPoint(threshold=threshold, score=metric, reference=counts[0], deployed=counts[1], count=ratio)


def _metrics(side: Values) -> WeightedMetrics:
    """Return a function from the weights of the samples to F1 in percent, and to the logarithm of the count."""

    def compute(weights: Array) -> dict[str, float]:
        hits, findings, objects = (float(weights @ side[key]) for key in ("hits", "found", "wanted"))
        total = findings + objects
        return {
            _SCORE: _PERCENT * 2 * hits / total if total else 0.0,
            _COUNT: math.log(findings) if findings else math.nan,
        }

    return compute
