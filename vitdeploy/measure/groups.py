"""The drop of a metric in groups of samples, such as classes: bounds that hold for all groups together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from vitdeploy.evidence import ClassScore, GroupDrop
from vitdeploy.measure.accuracy import resample_drops
from vitdeploy.measure.samples import Outcomes, select
from vitdeploy.measure.statistics import Array, paired_drop
from vitdeploy.tasks import Task, class_name

_PERCENT = 100.0
_LEVEL = 0.05


def split_classes(task: Task, outcomes: Outcomes, names: tuple[str, ...] | None) -> dict[str, Array]:
    """Return the samples of each class that occurs: name -> bool (n,). Nothing if a sample does not have one class.

    Classes that share a name, such as the two cranes of ImageNet-1k, have their index behind it: `crane (134)`.
    """
    classes = task.find_groups(outcomes.reference)
    if classes is None:
        return {}
    present = {int(c): class_name(int(c), names) for c in np.unique(classes)}
    owners = Counter(names or ()) + Counter(name for c, name in present.items() if c >= len(names or ()))
    return {name if owners[name] == 1 else f"{name} ({c})": classes == c for c, name in present.items()}


def score_classes(task: Task, outcomes: Outcomes, names: tuple[str, ...] | None) -> tuple[ClassScore, ...]:
    """Return the first metric class by class, with 95 % intervals of each class alone; nothing if it is no share."""
    metric = next(iter(task.units), "")
    if metric not in task.binary:
        return ()
    scores = []
    for name, chosen in split_classes(task, outcomes, names).items():
        drop = paired_drop(outcomes.reference[metric][chosen], outcomes.deployed[metric][chosen])
        low, high = drop.ci95
        figures = _PERCENT * drop.reference, _PERCENT * drop.deployed, _PERCENT * drop.drop
        scores.append(
            ClassScore(
                name=name,
                n=drop.n,
                reference=figures[0],
                deployed=figures[1],
                drop=figures[2],
                ci95=(_PERCENT * low, _PERCENT * high),
            )
        )
    return tuple(scores)


def compare_groups(task: Task, outcomes: Outcomes, groups: Mapping[str, Array]) -> tuple[GroupDrop, ...]:
    """Return the drop of the first metric in each group, the largest first.

    With G groups, each one-sided bound has the level 1 - 0.05 / G, so that all hold together with 95 % confidence
    (Bonferroni). Shares of right answers have Tango's bounds. For other metrics they are normal, with the standard
    error of the bootstrap, and reach at least as far as `Drop.least_reach` says.

    Args:
        task: computes the metric.
        outcomes: the outcomes of both sides.
        groups: name -> the samples in it, bool (n,). Groups without samples are left out.
    """
    filled = {name: chosen for name, chosen in groups.items() if chosen.any()}
    if not filled:
        return ()
    metric, z = next(iter(task.units)), NormalDist().inv_cdf(1 - _LEVEL / len(filled))
    drops = [_compare(task, metric, z, name, select(outcomes, chosen)) for name, chosen in filled.items()]
    return tuple(sorted(drops, key=lambda group: -group.drop))


def _compare(task: Task, metric: str, z: float, name: str, outcomes: Outcomes) -> GroupDrop:
    reference, deployed, n = outcomes.reference, outcomes.deployed, len(outcomes.digest)
    if metric in task.binary:
        share = paired_drop(reference[metric], deployed[metric])
        values = share.reference, share.deployed, share.drop, share.bound(-z), share.bound(z)
        figures = [_PERCENT * value for value in values]
    else:
        drop = resample_drops(task, [metric], reference, deployed, n)[metric]
        error = max(z * float(np.sqrt(drop.variance / n)), drop.least_reach(z))
        figures = [drop.reference, drop.deployed, drop.drop, drop.drop - error, drop.drop + error]
    before, now, lost, lower, upper = figures
    return GroupDrop(name=name, n=n, reference=before, deployed=now, drop=lost, lower=lower, upper=upper)
