"""Accuracy of two models on the same samples. Pairing them makes the error of the difference far smaller."""

from __future__ import annotations

from collections.abc import Mapping

from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Eval, Metric
from vitdeploy.measure.statistics import Array, PairedDrop, paired_drop

POINTS = "points"
_PERCENT = 100.0  # outcomes of 0 and 1 are reported in percent, their differences in points


def paired(
    task: str,
    reference: Mapping[str, Array],
    deployed: Mapping[str, Array],
    ref_prediction: Array,
    dep_prediction: Array,
    *,
    units: Mapping[str, str] | None = None,
    nonfinite: int = 0,
) -> Eval:
    """The evidence that two models are equally good, or how much the second one lost.

    Args:
        task: the task's name.
        reference: metric -> 0/1 per sample, shape (n,). The first metric is the one that gates look at.
        deployed: the same metrics of the other model, samples in the same order.
        ref_prediction: what the reference predicted, shape (n, …).
        dep_prediction: what the other model predicted, same shape.
        units: metric -> unit of its drop; points unless said otherwise.
        nonfinite: samples for which the deployed model gave NaN or infinity.

    Raises:
        MeasureError: no samples, no metrics, or sides that do not describe the same samples.
    """
    if not reference or list(reference) != list(deployed):
        message = f"the sides have no metrics in common: {', '.join(reference)} and {', '.join(deployed)}"
        raise MeasureError(message, fix="Evaluate both with the same task.")
    drops = {name: _drop(name, outcomes, deployed[name]) for name, outcomes in reference.items()}
    first = next(iter(drops.values()))
    flips = _flips(ref_prediction, dep_prediction)
    if any(drop.n != len(ref_prediction) for drop in drops.values()):
        raise MeasureError("predictions and metrics are not of the same samples", fix="Evaluate both sides again.")
    return Eval(
        task=task,
        n=first.n,
        metrics={name: _metric(drop, (units or {}).get(name, POINTS)) for name, drop in drops.items()},
        agreement=1 - flips / first.n,
        flips=flips,
        p_value=first.p_value,
        discordance=first.discordance,
        nonfinite=nonfinite,
    )


def _drop(name: str, reference: Array, deployed: Array) -> PairedDrop:
    if not reference.size or not deployed.size:
        raise MeasureError(f"{name}: no sample was compared", fix="Give data with at least one labelled image.")
    try:
        return paired_drop(reference, deployed)
    except ValueError as error:
        raise MeasureError(f"{name}: {error}", fix="Evaluate both sides on the same data again.") from None


def _flips(reference: Array, deployed: Array) -> int:
    """How many samples are predicted differently, whether or not either prediction is right."""
    if reference.shape != deployed.shape or not reference.ndim:
        message = f"predictions of shape {reference.shape} and {deployed.shape} are not of the same samples"
        raise MeasureError(message, fix="Evaluate both sides on the same data again.")
    differs = (reference != deployed).reshape(len(reference), -1)
    return int(differs.any(axis=1).sum())


def _metric(drop: PairedDrop, unit: str) -> Metric:
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
