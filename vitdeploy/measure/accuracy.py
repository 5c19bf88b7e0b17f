"""Accuracy of two models on the same samples: pairing makes the error of the difference far smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Eval, Metric
from vitdeploy.frozen import replace as update
from vitdeploy.measure.resampling import Drop, paired_drops, swap_p_value
from vitdeploy.measure.samples import Outcomes
from vitdeploy.measure.statistics import Array, PairedDrop, paired_drop
from vitdeploy.tasks import Task, Values

POINTS = "points"
_PERCENT = 100.0  # outcomes of 0 and 1 are reported in percent, their differences in points


def compare_accuracy(
    kind: str, task: Task, reference: Values, deployed: Values, agreement: Array, *, nonfinite: int = 0
) -> Eval:
    """Compare the accuracy of a reference and a deployed model, sample by sample.

    Args:
        kind: the task's name.
        task: computes the metrics of both sides.
        reference: per-sample statistics of the reference; the first axis is the sample.
        deployed: the same statistics of the deployed model, samples in the same order.
        agreement: how far the two answers to each sample agree, from 0 to 1; shape (samples,).
        nonfinite: samples for which the deployed model gave NaN or infinity.

    Raises:
        MeasureError: there are no samples, or the sides do not describe the same samples.
        DataError: no sample has a label.
    """
    count = len(agreement)
    numbers, finite = np.arange(count, dtype=np.uint64), np.ones(count, dtype=bool)
    paired = pair_outcomes(task, Outcomes(numbers, reference, deployed, agreement, finite))
    return update(compare_outcomes(task, paired), task=kind, nonfinite=nonfinite)


def pair_outcomes(task: Task, outcomes: Outcomes) -> Outcomes:
    """Add the statistics that need all samples or both models. Call it once.

    Raises:
        MeasureError: there are no samples, or the sides do not describe the same samples.
    """
    _count_samples(outcomes)
    reference, deployed = task.pair_statistics(outcomes.reference, outcomes.deployed)
    return replace(outcomes, reference=reference, deployed=deployed)


def compare_outcomes(task: Task, outcomes: Outcomes, classes: Sequence[str] | None = None) -> Eval:
    """Compare the accuracy of a reference and a deployed model, sample by sample.

    Metrics that are shares of right answers get Tango's interval and McNemar's test. All others get a paired bootstrap
    and a randomization test. Equal outcomes give equal results.

    Args:
        task: computes the metrics of both sides.
        outcomes: what `pair_outcomes` returned.
        classes: the names of the classes, for doubts.

    Raises:
        MeasureError: there are no samples, or the sides do not describe the same samples.
        DataError: no sample has a label.
    """
    n = _count_samples(outcomes)
    reference, deployed, agreement = outcomes.reference, outcomes.deployed, outcomes.agreement
    names = list(task.aggregate(reference))
    shares = {name: _compare_outcomes(name, reference[name], deployed[name]) for name in names if name in task.binary}
    others = [name for name in names if name not in shares]
    drops = resample_drops(task, others, reference, deployed, n) if others else {}
    metrics = {
        name: _share_metric(shares[name], task.units[name]) if name in shares else _drop_metric(drops[name], name, task)
        for name in names
    }
    first = names[0]
    if first in shares:
        p_value, discordance = shares[first].p_value, shares[first].discordance
    else:
        both = {name: np.concatenate([values, deployed[name]]) for name, values in reference.items()}
        p_value = swap_p_value(task.weighted_metrics(both), first, n)
        discordance = (drops[first].variance + drops[first].drop ** 2) / _PERCENT**2
    return Eval(
        task=task.name,
        n=n,
        metrics=metrics,
        agreement=float(agreement.mean()),
        flips=int((agreement < task.flip_below).sum()),
        p_value=p_value,
        test="McNemar" if first in shares else "swaps",
        discordance=discordance,
        nonfinite=int((~outcomes.finite).sum()),
        doubts=tuple(task.find_doubts(reference, classes)),
    )


def _count_samples(outcomes: Outcomes) -> int:
    """Check that both sides have the same samples, and count them."""
    reference, deployed, agreement = outcomes.reference, outcomes.deployed, outcomes.agreement
    if list(reference) != list(deployed) or not reference:
        message = (
            "the two sides have different statistics: "
            f"{', '.join(reference) or 'none'} and {', '.join(deployed) or 'none'}"
        )
        raise MeasureError(message, fix="Evaluate both with the same task.")
    counts = {len(values) for values in (*reference.values(), *deployed.values(), agreement, outcomes.finite)}
    if counts == {0}:
        raise MeasureError("there is no sample to compare", fix="Give data with at least one labelled image.")
    if len(counts) > 1 or any(reference[name].shape != deployed[name].shape for name in reference):
        raise MeasureError("the two sides have different samples", fix="Evaluate both again on the same data.")
    return len(agreement)


def _compare_outcomes(name: str, reference: Array, deployed: Array) -> PairedDrop:
    try:
        return paired_drop(reference, deployed)
    except ValueError as error:
        raise MeasureError(f"{name}: {error}", fix="Evaluate both again on the same data.") from None


def resample_drops(task: Task, names: list[str], reference: Values, deployed: Values, n: int) -> Mapping[str, Drop]:
    """Return the drop of these metrics, from the statistics of both sides of n samples; see `paired_drops`."""
    signs = {name: -1.0 if name in task.lower_is_better else 1.0 for name in names}
    spans = {name: _largest_loss(task.units[name], name, reference, deployed) for name in names}
    compared = [key for key in reference if key not in task.ranking_only]
    differs = {key: (reference[key] != deployed[key]).reshape(n, -1).any(axis=1) for key in compared}
    differs_anywhere: Array = np.logical_or.reduce(list(differs.values()))
    return paired_drops(
        task.weighted_metrics(reference),
        task.weighted_metrics(deployed),
        n,
        signs=signs,
        spans=spans,
        differing={name: int(differs.get(name, differs_anywhere).sum()) for name in names},
    )


def _largest_loss(unit: str, name: str, reference: Values, deployed: Values) -> float:
    """Return the most that one sample can lose: 100 points, or the largest value of any sample."""
    if unit == POINTS or name not in reference:
        return _PERCENT
    return float(max(np.abs(reference[name]).max(), np.abs(deployed[name]).max()))


def _share_metric(drop: PairedDrop, unit: str) -> Metric:
    low, high = drop.ci95
    return Metric(
        reference=_PERCENT * drop.reference,
        deployed=_PERCENT * drop.deployed,
        drop=_PERCENT * drop.drop,
        unit=unit,
        ci95=(_PERCENT * low, _PERCENT * high),
        lower95=_PERCENT * drop.lower95,
        upper95=_PERCENT * drop.upper95,
    )


def _drop_metric(drop: Drop, name: str, task: Task) -> Metric:
    return Metric(
        reference=drop.reference,
        deployed=drop.deployed,
        drop=drop.drop,
        unit=task.units[name],
        better="lower" if name in task.lower_is_better else "higher",
        ci95=drop.ci95,
        lower95=drop.lower95,
        upper95=drop.upper95,
    )
