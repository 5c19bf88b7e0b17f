"""Accuracy of two models on the same samples. Pairing them makes the error of the difference far smaller."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Eval, Metric
from vitdeploy.measure.resampling import Drop, paired_drops, swap_p_value
from vitdeploy.measure.statistics import Array, PairedDrop, paired_drop
from vitdeploy.tasks import Task, Values

POINTS = "points"
_PERCENT = 100.0  # outcomes of 0 and 1 are reported in percent, their differences in points


def paired(kind: str, task: Task, reference: Values, deployed: Values, agreement: Array, *, nonfinite: int = 0) -> Eval:
    """The evidence that two models are equally good, or how much the second one lost.

    Metrics that are shares of right answers get Tango's interval and McNemar's test; all others are drawn again
    in pairs.

    Args:
        kind: the task's name.
        task: computes the metrics, the same way on both sides.
        reference: the statistics of the reference, samples first.
        deployed: those of the other model, samples in the same order.
        agreement: how far the two answers agree, sample by sample.
        nonfinite: samples for which the deployed model gave NaN or infinity.

    Raises:
        MeasureError: no samples, or sides that do not describe the same samples.
        DataError: no sample has a label to compare with.
    """
    n = _check(reference, deployed, agreement)
    reference, deployed = task.paired(reference, deployed)
    whole = task.aggregate(reference)
    binary = [name for name in whole if name in task.binary]
    shares = {name: _share(name, reference[name], deployed[name]) for name in binary}
    others = [name for name in whole if name not in shares]
    drops = _drops(task, others, reference, deployed, n) if others else {}
    metrics = {
        name: _of_share(shares[name], task.units[name]) if name in shares else _of_drop(drops[name], name, task)
        for name in whole
    }
    first = next(iter(whole))
    if first in shares:
        p_value, discordance = shares[first].p_value, shares[first].discordance
    else:
        both = {name: np.concatenate([values, deployed[name]]) for name, values in reference.items()}
        p_value = swap_p_value(task.weigher(both), first, n)
        discordance = (drops[first].variance + drops[first].drop ** 2) / _PERCENT**2
    return Eval(
        task=kind,
        n=n,
        metrics=metrics,
        agreement=float(agreement.mean()),
        flips=int((agreement < task.same_from).sum()),
        p_value=p_value,
        test="McNemar" if first in shares else "swaps",
        discordance=discordance,
        nonfinite=nonfinite,
        doubts=tuple(task.doubts(reference)),
    )


def _check(reference: Values, deployed: Values, agreement: Array) -> int:
    """The number of samples."""
    if list(reference) != list(deployed) or not reference:
        message = (
            f"the sides have other statistics: {', '.join(reference) or 'none'} and {', '.join(deployed) or 'none'}"
        )
        raise MeasureError(message, fix="Evaluate both with the same task.")
    counts = {len(values) for values in (*reference.values(), *deployed.values(), agreement)}
    if counts == {0}:
        raise MeasureError("no sample was compared", fix="Give data with at least one labelled image.")
    if len(counts) > 1 or any(reference[name].shape != deployed[name].shape for name in reference):
        raise MeasureError("the two sides are not of the same samples", fix="Evaluate both on the same data again.")
    return len(agreement)


def _share(name: str, reference: Array, deployed: Array) -> PairedDrop:
    try:
        return paired_drop(reference, deployed)
    except ValueError as error:
        raise MeasureError(f"{name}: {error}", fix="Evaluate both sides on the same data again.") from None


def _drops(task: Task, names: list[str], reference: Values, deployed: Values, n: int) -> Mapping[str, Drop]:
    signs = {name: -1.0 if name in task.lower_is_better else 1.0 for name in names}
    spans = {name: _span(task.units[name], name, reference, deployed) for name in names}
    compared = [key for key in reference if key not in task.order_only]
    differs = {key: (reference[key] != deployed[key]).reshape(n, -1).any(axis=1) for key in compared}
    anyhow: Array = np.logical_or.reduce(list(differs.values()))
    return paired_drops(
        task.weigher(reference),
        task.weigher(deployed),
        n,
        signs=signs,
        spans=spans,
        differing={name: int(differs.get(name, anyhow).sum()) for name in names},
    )


def _span(unit: str, name: str, reference: Values, deployed: Values) -> float:
    """The most that one sample can lose: all of a percentage, else as much as the worst sample seen has."""
    if unit == POINTS or name not in reference:
        return _PERCENT
    return float(max(np.abs(reference[name]).max(), np.abs(deployed[name]).max()))


def _of_share(drop: PairedDrop, unit: str) -> Metric:
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


def _of_drop(drop: Drop, name: str, task: Task) -> Metric:
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
