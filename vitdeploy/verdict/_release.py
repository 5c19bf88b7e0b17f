"""Checks of an artifact against an earlier one with other weights, on the same samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

from vitdeploy import tasks
from vitdeploy.errors import MeasureError, VitdeployError
from vitdeploy.evidence import Check, GroupDrop, Release
from vitdeploy.frozen import replace
from vitdeploy.measure.accuracy import compare_outcomes
from vitdeploy.measure.groups import compare_groups, split_classes
from vitdeploy.measure.samples import Outcomes, unpack
from vitdeploy.recipe import GateSpec, TaskSpec
from vitdeploy.verdict._case import Case, decide, invalid

DEFAULT_MAX_REGRESSION_PP = 1.0  # two trainings of one model differ by about half a point
DEFAULT_MAX_CLASS_REGRESSION_PP = 5.0
_SHOWN = 3
_AGAIN = "Run vitdeploy gate again with --baseline and --data."


def check_release(case: Case, limits: GateSpec, release: Release | None, problem: str) -> Iterator[Check]:
    """Check the metric over all samples, and in the worst class or group."""
    overall, worst = limits.max_regression_pp, limits.max_class_regression_pp
    if release is None:
        missing = problem or "nothing was compared on the same samples: give --baseline DIR and --data DATA"
        needing = {"regression": overall, "worst class regression": worst}
        yield from (invalid(name, limit, missing) for name, limit in needing.items() if limit is not None)
        return
    overall = DEFAULT_MAX_REGRESSION_PP if overall is None else overall
    reason = problem or _explain_unusable(case, release)
    yield _check_overall(release, overall, reason)
    if worst is not None or release.user_groups:
        yield _check_worst(release, DEFAULT_MAX_CLASS_REGRESSION_PP if worst is None else worst, reason)


def recompute_release(spec: TaskSpec, release: Release, raw: bytes, labels: tuple[str, ...] | None) -> Release:
    """Return a comparison with all figures computed from its samples.

    Raises:
        MeasureError: the samples are not those that it names, or not of this task.
    """
    if hashlib.sha256(raw).hexdigest() != release.samples:
        raise MeasureError("the samples are not those that release.json names", fix=_AGAIN)
    outcomes, task = unpack(raw), tasks.find(spec)
    try:
        return compare_releases(release, task, outcomes, labels)
    except (VitdeployError, ValueError, KeyError, IndexError, TypeError, ArithmeticError) as error:
        raise MeasureError(f"the samples are not those of a {task.name} task: {error}", fix=_AGAIN) from None


def compare_releases(release: Release, task: tasks.Task, outcomes: Outcomes, labels: tuple[str, ...] | None) -> Release:
    """Return a comparison with all figures that follow from its samples.

    Args:
        release: the comparison.
        task: computes the metrics.
        outcomes: the reference is the earlier artifact. Without groups in them, classes are compared.
        labels: the names of the classes.
    """
    evaluation = compare_outcomes(task, outcomes, labels)
    members = {release.group_names[int(number)]: chosen for number, chosen in outcomes.groups.items()}
    doubts = [f"the earlier artifact: {doubt}" for doubt in evaluation.doubts]
    doubts += [f"this artifact: {doubt}" for doubt in task.find_doubts(outcomes.deployed, labels)]
    metric = next(iter(evaluation.metrics))
    before, now = (
        side.get(metric) if metric in task.binary else None for side in (outcomes.reference, outcomes.deployed)
    )
    return replace(
        release,
        n=evaluation.n,
        metrics=evaluation.metrics,
        groups=compare_groups(task, outcomes, members or split_classes(task, outcomes, labels)),
        doubts=tuple(doubts),
        lost=None if before is None or now is None else int((before > now).sum()),
        gained=None if before is None or now is None else int((now > before).sum()),
        nonfinite=evaluation.nonfinite,
    )


def _explain_unusable(case: Case, release: Release) -> str:
    if case.random_weights:
        return "random weights: accuracy means nothing"
    if release.unusable:
        return release.unusable
    return f"doubtful: {release.doubts[0]}" if release.doubts else ""


def _check_overall(release: Release, limit: float, unusable: str) -> Check:
    name = "regression"
    if release.nonfinite:
        reason = f"{release.nonfinite} of {release.n:,} samples gave NaN or infinity"
        return Check(name=name, observed=None, limit=limit, status="fail", why=reason)
    if unusable:
        return invalid(name, limit, unusable)
    metric, drop = next(iter(release.metrics.items()))
    status = decide(drop.lower95, drop.upper95, limit)
    sentence = f"{metric} went from {drop.reference:.2f} to {drop.deployed:.2f}"
    if status == "invalid":
        sentence += f"; the loss is between {drop.lower95:.2f} and {drop.upper95:.2f} with 95 % confidence, on "
        sentence += f"{release.n:,} samples: more samples are needed"
    else:
        bound = f"at most {drop.upper95:.2f}" if status == "pass" else f"at least {drop.lower95:.2f}"
        sentence += f", a loss of {bound} {drop.unit} with 95 % confidence, on {release.n:,} samples"
    if release.lost is not None:
        sentence += f"; {release.lost:,} samples were lost, {release.gained:,} gained"
    return Check(name=name, observed=drop.drop, limit=limit, status=status, why=sentence, details=release.worse)


def _check_worst(release: Release, limit: float, unusable: str) -> Check:
    what = "group" if release.user_groups else "class"
    name = f"worst {what} regression"
    if unusable:
        return invalid(name, limit, unusable)
    if not release.groups:
        return invalid(name, limit, f"a {release.task} sample does not have one class: name groups with --groups")
    worst = release.groups[0]
    details = tuple(_describe(group) for group in release.groups if group.drop > 0)
    undefined = [group for group in release.groups if not all(map(math.isfinite, (group.lower, group.upper)))]
    if undefined:
        shown = ", ".join(f"{group.name!r}" for group in undefined[:_SHOWN])
        return invalid(name, limit, f"the metric is not defined on the samples of {shown}: leave it out of --groups")
    broken = [group for group in release.groups if group.lower > limit]
    open_ = [group for group in release.groups if group.upper > limit]
    together = f"with 95 % confidence for all {len(release.groups)} together"
    if broken:
        reason = f"{_list(broken)}; it lost at least {broken[0].lower:.2f} {together}"
        observed = broken[0].drop
        return Check(name=name, observed=observed, limit=limit, status="fail", why=reason, details=details)
    if open_:
        widest = max(open_, key=lambda group: group.upper)
        reason = f"{_list(open_)}; {widest.name!r} may have lost {widest.upper:.2f} {together}: "
        reason += f"its {widest.n:,} samples are too few"
        return Check(name=name, observed=worst.drop, limit=limit, status="invalid", why=reason, details=details)
    reason = f"the worst is {worst.name!r} with {worst.drop:.2f}, at most {max(g.upper for g in release.groups):.2f}"
    return Check(
        name=name, observed=worst.drop, limit=limit, status="pass", why=f"{reason} {together}", details=details
    )


def _list(groups: list[GroupDrop]) -> str:
    shown = ", ".join(f"{g.name!r} from {g.reference:.1f} to {g.deployed:.1f}" for g in groups[:_SHOWN])
    return shown + (f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else "")


def _describe(group: GroupDrop) -> str:
    return (
        f"{group.name}: {group.reference:.1f} to {group.deployed:.1f} on {group.n:,} samples, a loss of "
        f"{group.drop:.1f} ({group.lower:.1f} to {group.upper:.1f})"
    )
