"""The gate's verdict: evidence and limits in, checks out. `judge` is pure.

Every check passes, fails or is invalid (it could not be decided). Absent, stale or doubtful evidence is invalid, and so
is a gate without limits: nothing happening is never a pass.
"""

from __future__ import annotations

import math

from vitdeploy.evidence import Bench, Check, Eval, Gate, Status
from vitdeploy.measure.statistics import required_samples
from vitdeploy.recipe import GateSpec
from vitdeploy.verdict._baseline import against_baseline, incomparable
from vitdeploy.verdict._case import MIB, Before, Case, decide, first_doubt, fused_percent, invalid, unproven

__all__ = ["Before", "Case", "incomparable", "judge"]


def judge(case: Case, limits: GateSpec, before: Before | None = None) -> Gate:
    """Hold the evidence against the limits and, where there is one, against an earlier artifact.

    Args:
        case: the artifact and the evidence about it.
        limits: what is not set is not judged.
        before: the earlier artifact.
    """
    interleaved = before.interleaved if before is not None else None
    checks = [
        _finite(case, interleaved),
        _accuracy(case, limits.max_drop_pp),
        _speedup(case, limits.min_speedup),
        _fused(case, limits.min_fused_pct),
        _size(case, limits.max_size_mib),
        _memory(case, limits.max_memory_mib),
        *against_baseline(case, limits, before),
    ]
    judged = tuple(check for check in checks if check is not None)
    if not judged:
        why = (
            "no limits were given: give --max-drop, --min-speedup, --min-fused, --max-size, --max-memory or --baseline"
        )
        judged = (Check(name="limits", observed=None, limit="at least one", status="invalid", why=why),)
    statuses = {check.status for check in judged}
    verdict: Status = "fail" if "fail" in statuses else "invalid" if "invalid" in statuses else "pass"
    return Gate(verdict=verdict, checks=judged, manifest=case.manifest, timing=interleaved)


def _finite(case: Case, interleaved: Bench | None) -> Check | None:
    """Fail when this artifact ever gave NaN or infinity, whatever the limits are."""
    evaluation = None if case.unusable("eval") else case.evaluation
    if evaluation is not None and evaluation.nonfinite:
        observed, why = evaluation.nonfinite, f"{evaluation.nonfinite} of {evaluation.n} samples gave NaN or infinity"
    elif any(run is not None and not run.finite for run in (case.run, interleaved.own if interleaved else None)):
        observed, why = 1, "the outputs while timing had NaN or infinity"
    else:
        return None
    return Check(name="finite outputs", observed=observed, limit=0.0, status="fail", why=why)


def _accuracy(case: Case, limit: float | None) -> Check | None:
    """Check for non-inferiority: the whole one-sided interval of the drop has to stay below the limit."""
    if limit is None:
        return None
    name, evaluation = "accuracy drop", case.evaluation
    if reason := case.unusable("eval"):
        return invalid(name, limit, reason)
    if case.random_weights:
        return invalid(name, limit, "random weights: accuracy means nothing")
    if evaluation is None or not evaluation.n or not evaluation.metrics:
        return invalid(name, limit, "no sample was compared")
    if evaluation.doubts:
        return invalid(name, limit, f"doubtful: {evaluation.doubts[0]}")
    metric, drop = next(iter(evaluation.metrics.items()))
    if not all(map(math.isfinite, (drop.reference, drop.deployed, drop.drop, drop.lower95, drop.upper95))):
        return Check(name=name, observed=None, limit=limit, status="fail", why=f"{metric} is not finite")
    status = decide(drop.lower95, drop.upper95, limit)
    sentence = f"{metric} dropped by {drop.drop:.2f} {drop.unit}"
    if status == "pass":
        why = f"{sentence}, at most {drop.upper95:.2f} with 95 % confidence, on {evaluation.n:,} samples"
    elif status == "fail":
        why = f"{sentence}, at least {drop.lower95:.2f} with 95 % confidence, on {evaluation.n:,} samples"
    else:
        needed = _samples_needed(evaluation, drop.drop, limit)
        why = f"{sentence}, between {drop.lower95:.2f} and {drop.upper95:.2f}; {needed}"
    return Check(name=name, observed=drop.drop, limit=limit, status=status, why=why)


def _samples_needed(evaluation: Eval, drop: float, limit: float) -> str:
    """Say how many samples would decide it: never fewer than twice those that did not."""
    count = required_samples(limit / 100, drop / 100, evaluation.discordance)
    if count is None:
        return f"the drop is the limit itself: no number of samples will decide it ({evaluation.n:,} did not)"
    return f"needs about {max(count, 2 * evaluation.n):,} samples instead of {evaluation.n:,}"


def _speedup(case: Case, limit: float | None) -> Check | None:
    if limit is None:
        return None
    name, bench = "speed-up", case.bench
    if reason := case.unusable("bench"):
        return invalid(name, limit, reason)
    if bench is None or not bench.valid:
        return invalid(name, limit, first_doubt(bench))
    speedup = case.run.speedup if case.run else None
    reference = bench.reference
    if speedup is None or case.run is None or reference is None:
        return invalid(name, limit, "no reference was timed beside it")
    if reference.manifest and not case.against_artifact:
        other = f"it was timed against {reference.name}, another artifact, not against {case.against}"
        return invalid(name, limit, f"{other}: run vitdeploy bench again")
    low, high = speedup.ci95
    sentence = f"{speedup.ratio:.2f} times as fast as {reference.name}, 95 % interval {low:.2f} to {high:.2f}"
    sentence += f", batch {case.run.batch}" if case.run.batch != 1 else ""
    sentence += "" if bench.scenario == "single-stream" else f", {bench.scenario}"
    status: Status = "pass" if low >= limit else "fail" if high < limit else "invalid"
    if status == "invalid":
        sentence += ": the limit is inside, measure longer (--seconds)"
    return Check(name=name, observed=speedup.ratio, limit=limit, status=status, why=sentence)


def _fused(case: Case, limit: float | None) -> Check | None:
    if limit is None:
        return None
    name = "attention fused"
    if reason := case.unusable("audit") or unproven(case.audit):
        return invalid(name, limit, reason)
    percent, attention = fused_percent(case.audit)
    status: Status = "pass" if percent >= limit else "fail"
    return Check(name=name, observed=percent, limit=limit, status=status, why=attention)


def _size(case: Case, limit: float | None) -> Check | None:
    """Check the size of the deployed files; it is known without running anything."""
    if limit is None:
        return None
    if case.stage != "artifact" or case.size_bytes is None:
        return invalid("size (MiB)", limit, "only a bundle: compile it on the device")
    size = case.size_bytes / MIB
    status: Status = "pass" if size <= limit else "fail"
    return Check(name="size (MiB)", observed=size, limit=limit, status=status, why=f"{size:.1f} MiB are deployed")


def _memory(case: Case, limit: float | None) -> Check | None:
    """Check the peak resident memory of a process that opened the artifact and answered once."""
    if limit is None:
        return None
    name = "memory (MiB)"
    if reason := case.unusable("bench"):
        return invalid(name, limit, reason)
    startup = case.run.startup if case.run else None
    if startup is None or startup.peak_bytes is None:
        return invalid(name, limit, "the peak memory was not measured: run bench again on a system that tells it")
    peak = startup.peak_bytes / MIB
    engine = f", {startup.engine_bytes / MIB:.0f} of them before it was opened" if startup.engine_bytes else ""
    status: Status = "pass" if peak <= limit else "fail"
    return Check(name=name, observed=peak, limit=limit, status=status, why=f"peak of {peak:.0f} MiB{engine}")
