"""The gate: evidence and limits in, a verdict out. `judge` is pure.

Every check passes, fails or is invalid (it could not be decided). Absent, stale or doubtful evidence is invalid, and so
is a gate without limits: nothing happening is never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from vitdeploy.evidence import Audit, Bench, Check, Eval, Gate, Status
from vitdeploy.measure.baseline import Baseline
from vitdeploy.measure.statistics import required_samples
from vitdeploy.recipe import OPPONENTS, GateSpec
from vitdeploy.verdict._baseline import against_baseline, incomparable
from vitdeploy.verdict._case import MIB, Case, decide, doubt, fused_percent, invalid, unproven

__all__ = ["incomparable", "judge"]


def judge(
    audit: Audit | None,
    bench: Bench | None,
    evaluation: Eval | None,
    limits: GateSpec,
    *,
    missing: Mapping[str, str],
    stage: str,
    random_weights: bool,
    baseline: Baseline | None,
    manifest: str,
    machine: str = "",
    model_digest: str = "",
    interleaved: Bench | None = None,
    size_bytes: int | None = None,
    recipe: Mapping[str, str] | None = None,
    untimed: str = "",
    against: str = OPPONENTS[0],
) -> Gate:
    """Hold the evidence against the limits and, where there is one, against a baseline.

    Args:
        audit: what the compiled thing does.
        bench: latencies; the first run is the reference, the second one this artifact.
        evaluation: accuracy of both sides.
        limits: what is not set is not judged.
        missing: "audit", "bench" or "eval" -> why that evidence is absent or stale.
        stage: "bundle" or "artifact".
        random_weights: whether the weights are random, so that accuracy means nothing.
        baseline: an earlier artifact to hold this one against.
        manifest: digest of the manifest that all evidence must be about.
        machine: where this artifact was measured; the bench's own word goes first.
        model_digest: of this artifact's weights.
        interleaved: the baseline (first run) and this artifact timed against each other, which beats two speed-ups
            that were taken at different times.
        size_bytes: of the files that are deployed.
        recipe: what of the recipe decides speed and accuracy (`baseline.decisive_keys`); None: not compared.
        untimed: why a baseline that should have been timed in turns with this artifact was not.
        against: what the recipe wants it timed against.
    """
    case = Case(audit, bench, evaluation, missing, stage, manifest, size_bytes)
    checks = [
        _finite(case, interleaved),
        _accuracy(case, limits.max_drop_pp, random_weights),
        _speedup(case, limits.min_speedup, against),
        _fused(case, limits.min_fused_pct),
        _size(case, limits.max_size_mib),
        _memory(case, limits.max_memory_mib),
        *against_baseline(case, limits, baseline, interleaved, machine, model_digest, recipe, untimed),
    ]
    found = tuple(check for check in checks if check is not None)
    if not found:
        why = (
            "no limits were given: give --max-drop, --min-speedup, --min-fused, --max-size, --max-memory or --baseline"
        )
        found = (Check(name="limits", observed=None, limit="at least one", status="invalid", why=why),)
    statuses = {check.status for check in found}
    verdict: Status = "fail" if "fail" in statuses else "invalid" if "invalid" in statuses else "pass"
    return Gate(verdict=verdict, checks=found, manifest=manifest, timing=interleaved)


def _finite(case: Case, interleaved: Bench | None) -> Check | None:
    """Fails when this artifact ever gave NaN or infinity, whatever the limits are."""
    evaluation = None if case.unusable("eval") else case.evaluation
    if evaluation is not None and evaluation.nonfinite:
        observed, why = evaluation.nonfinite, f"{evaluation.nonfinite} of {evaluation.n} samples gave NaN or infinity"
    elif any(run is not None and not run.finite for run in (case.run, interleaved.own if interleaved else None)):
        observed, why = 1, "the outputs while timing had NaN or infinity"
    else:
        return None
    return Check(name="finite outputs", observed=observed, limit=0.0, status="fail", why=why)


def _accuracy(case: Case, limit: float | None, random_weights: bool) -> Check | None:
    """Non-inferiority: the whole one-sided interval of the drop has to stay below the limit."""
    if limit is None:
        return None
    name, evaluation = "accuracy drop", case.evaluation
    if why := case.unusable("eval"):
        return invalid(name, limit, why)
    if random_weights:
        return invalid(name, limit, "random weights: accuracy means nothing")
    if evaluation is None or not evaluation.n or not evaluation.metrics:
        return invalid(name, limit, "no sample was compared")
    if evaluation.doubts:
        return invalid(name, limit, f"doubtful: {evaluation.doubts[0]}")
    metric, drop = next(iter(evaluation.metrics.items()))
    if not all(map(math.isfinite, (drop.reference, drop.deployed, drop.drop, drop.lower95, drop.upper95))):
        return Check(name=name, observed=None, limit=limit, status="fail", why=f"{metric} is not finite")
    status = decide(drop.lower95, drop.upper95, limit)
    told = f"{metric} dropped by {drop.drop:.2f} {drop.unit}"
    if status == "pass":
        why = f"{told}, at most {drop.upper95:.2f} with 95 % confidence, on {evaluation.n:,} samples"
    elif status == "fail":
        why = f"{told}, at least {drop.lower95:.2f} with 95 % confidence, on {evaluation.n:,} samples"
    else:
        why = f"{told}, between {drop.lower95:.2f} and {drop.upper95:.2f}; {_needed(evaluation, drop.drop, limit)}"
    return Check(name=name, observed=drop.drop, limit=limit, status=status, why=why)


def _needed(evaluation: Eval, drop: float, limit: float) -> str:
    """How many samples would settle it; never fewer than twice those that did not."""
    needed = required_samples(limit / 100, drop / 100, evaluation.discordance)
    if needed is None:
        return f"the drop is the limit itself: no number of samples will settle it ({evaluation.n:,} did not)"
    return f"needs about {max(needed, 2 * evaluation.n):,} samples instead of {evaluation.n:,}"


def _speedup(case: Case, limit: float | None, against: str) -> Check | None:
    if limit is None:
        return None
    name, bench = "speed-up", case.bench
    if why := case.unusable("bench"):
        return invalid(name, limit, why)
    if bench is None or not bench.valid:
        return invalid(name, limit, doubt(bench))
    speedup = case.run.speedup if case.run else None
    reference = bench.reference
    if speedup is None or case.run is None or reference is None:
        return invalid(name, limit, "no reference was timed beside it")
    if reference.manifest and against in OPPONENTS:
        other = f"it was timed against {reference.name}, another artifact, not against {against}"
        return invalid(name, limit, f"{other}: run vitdeploy bench again")
    low, high = speedup.ci95
    told = f"{speedup.ratio:.2f} times as fast as {reference.name}, 95 % interval {low:.2f} to {high:.2f}"
    told += f", batch {case.run.batch}" if case.run.batch != 1 else ""
    told += "" if bench.scenario == "single-stream" else f", {bench.scenario}"
    status: Status = "pass" if low >= limit else "fail" if high < limit else "invalid"
    if status == "invalid":
        told += ": the limit is inside, measure longer (--seconds)"
    return Check(name=name, observed=speedup.ratio, limit=limit, status=status, why=told)


def _fused(case: Case, limit: float | None) -> Check | None:
    if limit is None:
        return None
    name = "attention fused"
    if why := case.unusable("audit") or unproven(case.audit):
        return invalid(name, limit, why)
    percent, attention = fused_percent(case.audit)
    status: Status = "pass" if percent >= limit else "fail"
    return Check(name=name, observed=percent, limit=limit, status=status, why=attention)


def _size(case: Case, limit: float | None) -> Check | None:
    """Of the deployed files; known without running anything."""
    if limit is None:
        return None
    if case.stage != "artifact" or case.size_bytes is None:
        return invalid("size (MiB)", limit, "only a bundle: compile it on the device")
    size = case.size_bytes / MIB
    status: Status = "pass" if size <= limit else "fail"
    return Check(name="size (MiB)", observed=size, limit=limit, status=status, why=f"{size:.1f} MiB are deployed")


def _memory(case: Case, limit: float | None) -> Check | None:
    """Peak resident memory of a process that opened the artifact and answered once."""
    if limit is None:
        return None
    name = "memory (MiB)"
    if why := case.unusable("bench"):
        return invalid(name, limit, why)
    startup = case.run.startup if case.run else None
    if startup is None or startup.peak_bytes is None:
        return invalid(name, limit, "the peak memory was not measured: run bench again on a system that tells it")
    peak = startup.peak_bytes / MIB
    engine = f", {startup.engine_bytes / MIB:.0f} of them before it was opened" if startup.engine_bytes else ""
    status: Status = "pass" if peak <= limit else "fail"
    return Check(name=name, observed=peak, limit=limit, status=status, why=f"peak of {peak:.0f} MiB{engine}")
