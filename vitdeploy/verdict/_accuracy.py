"""Checks of the accuracy: the drop, and what is found at a fixed threshold of the score."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vitdeploy.evidence import Bench, Check, Eval, OperatingPoint, Status
from vitdeploy.measure.statistics import required_samples
from vitdeploy.recipe import GateSpec
from vitdeploy.verdict._case import REFERENCES, Case, decide, invalid

DEFAULT_MAX_COUNT_CHANGE_PCT = 5.0


def check_finite(case: Case, interleaved: Bench | None) -> Check | None:
    """Fail if this artifact gave NaN or infinity, whatever the limits are."""
    evaluation = None if case.explain_unusable("eval") else case.evaluation
    if evaluation is not None and evaluation.nonfinite:
        observed = evaluation.nonfinite
        reason = f"{observed} of {evaluation.n} samples gave NaN or infinity"
    elif any(run is not None and not run.finite for run in (case.run, interleaved.own if interleaved else None)):
        observed, reason = 1, "the outputs while timing had NaN or infinity"
    else:
        return None
    return Check(name="finite outputs", observed=observed, limit=0.0, status="fail", why=reason)


def check_accuracy(case: Case, limit: float | None) -> Check | None:
    """Check for non-inferiority: the whole one-sided interval of the drop must be below the limit."""
    if limit is None:
        return None
    name, evaluation = "accuracy drop", case.evaluation
    if reason := case.explain_unusable("eval"):
        return invalid(name, limit, reason)
    if case.random_weights:
        return invalid(name, limit, "random weights: accuracy means nothing")
    if evaluation is None or not evaluation.n or not evaluation.metrics:
        return invalid(name, limit, "no sample was compared")
    if evaluation.reference and evaluation.reference not in REFERENCES:
        return invalid(name, limit, f"it was compared with {evaluation.reference}, not with the float32 reference")
    if evaluation.doubts:
        return invalid(name, limit, f"doubtful: {evaluation.doubts[0]}")
    metric, drop = next(iter(evaluation.metrics.items()))
    if not all(map(math.isfinite, (drop.reference, drop.deployed, drop.drop, drop.lower95, drop.upper95))):
        return Check(name=name, observed=None, limit=limit, status="fail", why=f"{metric} is not finite")
    status = decide(drop.lower95, drop.upper95, limit)
    sentence = f"{metric} dropped by {drop.drop:.2f} {drop.unit}"
    if status == "pass":
        reason = f"{sentence}, at most {drop.upper95:.2f} with 95 % confidence, on {_count(evaluation)}"
    elif status == "fail":
        reason = f"{sentence}, at least {drop.lower95:.2f} with 95 % confidence, on {_count(evaluation)}"
    else:
        reason = f"{sentence}, with 95 % confidence between {drop.lower95:.2f} and {drop.upper95:.2f}: "
        reason += _explain_needed_samples(evaluation, drop.drop, limit)
    return Check(name=name, observed=drop.drop, limit=limit, status=status, why=reason)


def _count(evaluation: Eval) -> str:
    """Return the number of samples, and of how many if --limit left some out."""
    left_out = evaluation.available - evaluation.n - evaluation.repeated - evaluation.skipped
    return f"{evaluation.n:,} samples" + (f" of {evaluation.available:,} (--limit)" if left_out > 0 else "")


def _explain_needed_samples(evaluation: Eval, drop: float, limit: float) -> str:
    """Say how many samples would decide the check: at least twice as many as there were."""
    count = required_samples(limit / 100, drop / 100, evaluation.discordance)
    if count is None:
        return f"the drop equals the limit, so no number of samples will decide it ({evaluation.n:,} did not)"
    return f"a decision needs about {max(count, 2 * evaluation.n):,} samples, not {evaluation.n:,}"


def check_operating_point(case: Case, limits: GateSpec) -> Iterator[Check]:
    """Check F1 and the number of findings at a fixed threshold of the score."""
    threshold = limits.at_threshold
    if threshold is None:
        if limits.max_count_change_pct is not None:
            yield invalid("count", limits.max_count_change_pct, "at which threshold? Give --at-threshold")
        return
    drop_limit = limits.max_drop_pp
    count_limit = DEFAULT_MAX_COUNT_CHANGE_PCT if limits.max_count_change_pct is None else limits.max_count_change_pct
    names = f"F1 at {threshold:g}", f"count at {threshold:g} (%)"
    point = case.explain_unusable("eval") or case.operating_point or "nothing was evaluated"
    if case.evaluation is not None and case.evaluation.doubts:
        point = f"doubtful: {case.evaluation.doubts[0]}"
    if case.random_weights:
        point = "random weights: accuracy means nothing"
    if isinstance(point, str):
        yield from (
            invalid(name, limit, point)
            for name, limit in zip(names, (drop_limit, count_limit), strict=True)
            if limit is not None
        )
        return
    score = point.score
    if drop_limit is not None:
        status = decide(score.lower95, score.upper95, drop_limit)
        bounds = f"with 95 % confidence between {score.lower95:.2f} and {score.upper95:.2f}"
        why = (
            f"F1 went from {score.reference:.2f} to {score.deployed:.2f} %, a loss of {score.drop:.2f} points, {bounds}"
        )
        why += ": more samples are needed" if status == "invalid" else ""
        yield Check(name=names[0], observed=score.drop, limit=drop_limit, status=status, why=why)
    yield _check_count(names[1], point, count_limit)


def _check_count(name: str, point: OperatingPoint, limit: float) -> Check:
    counts = f"{point.reference:,} became {point.deployed:,}"
    if point.count is None:
        same = point.reference == point.deployed
        if same:
            return invalid(name, limit, f"neither side finds anything with a score of {point.threshold:g} or more")
        return Check(name=name, observed=None, limit=limit, status="fail", why=counts)
    low, high = (100 * (end - 1) for end in point.count.ci95)
    change = 100 * (point.count.ratio - 1)
    status: Status = (
        "pass" if -limit <= low and high <= limit else "fail" if low > limit or high < -limit else "invalid"
    )
    why = f"{counts}: {change:+.1f} %, 95 % interval {low:+.1f} to {high:+.1f}"
    why += ": more samples are needed" if status == "invalid" else ""
    return Check(name=name, observed=change, limit=limit, status=status, why=why)
