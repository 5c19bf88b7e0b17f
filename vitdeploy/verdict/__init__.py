"""The gate's verdict: a pure function of evidence and limits.

Every check passes, fails, or is invalid, which means that it could not be decided. A check with missing, outdated or
doubtful evidence is invalid. So is a gate without limits: without a check there is no pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from vitdeploy.evidence import Bench, Check, EndToEnd, Eval, Gate, OperatingPoint, Run, Status
from vitdeploy.measure.latency import MIN_P99_SAMPLES
from vitdeploy.measure.statistics import required_samples
from vitdeploy.recipe import REFERENCE, GateSpec
from vitdeploy.verdict._agreement import Identity
from vitdeploy.verdict._baseline import check_against_baseline, explain_incomparable
from vitdeploy.verdict._case import (
    MIB,
    ONLY_A_BUNDLE,
    Before,
    Case,
    EvidenceName,
    decide,
    describe_fusion,
    explain_unproven,
    first_doubt,
    invalid,
)
from vitdeploy.verdict._examine import Examined, Stored, examine, explain_calibrated
from vitdeploy.verdict._recompute import recompute_bench
from vitdeploy.verdict._release import check_release, compare_releases, recompute_release

__all__ = [
    "Before",
    "Case",
    "EvidenceName",
    "Examined",
    "Identity",
    "Stored",
    "compare_releases",
    "examine",
    "explain_calibrated",
    "explain_incomparable",
    "judge",
    "recompute_bench",
    "recompute_release",
]

_REFERENCES = ("pytorch-fp32", "onnxruntime-fp32", "onnxruntime-quantized")
"""The names of the reference: of a PyTorch model, and of an ONNX file in float or quantized, whose graph it is."""

DEFAULT_MAX_COUNT_CHANGE_PCT = 5.0
_RAREST = 99

_NO_LIMIT = (
    "there is no limit: give --max-drop, --min-speedup, --max-latency, --min-fused, --min-quantized, --max-size, "
    "--max-memory or --baseline"
)


def judge(case: Case, limits: GateSpec, before: Before | None = None) -> Gate:
    """Compare the evidence with the limits and, if there is one, with an earlier artifact.

    Args:
        case: the artifact and the evidence about it.
        limits: a limit that is None is not checked.
        before: the earlier artifact.
    """
    interleaved = before.interleaved if before is not None else None
    results = [
        *case.faults,
        _check_finite(case, interleaved),
        _check_accuracy(case, limits.max_drop_pp),
        *_check_operating_point(case, limits),
        _check_speedup(case, limits.min_speedup),
        _check_latency(case, limits.max_latency_ms, limits.latency_percentile or 50),
        _check_end_to_end(case, limits.max_end_to_end_ms, limits.latency_percentile or 50),
        _check_fused(case, limits.min_fused_pct),
        _check_quantized(case, limits.min_quantized_pct),
        _check_size(case, limits.max_size_mib),
        _check_memory(case, limits.max_memory_mib),
        *check_release(case, limits, before.release if before else None, before.unreleased if before else ""),
        *check_against_baseline(case, limits, before),
    ]
    checks = tuple(check for check in results if check is not None)
    if not checks:
        checks = (invalid("limits", "at least one", _NO_LIMIT),)
    statuses = {check.status for check in checks}
    verdict: Status = "fail" if "fail" in statuses else "invalid" if "invalid" in statuses else "pass"
    return Gate(
        verdict=verdict,
        checks=checks,
        manifest=case.manifest,
        timing=interleaved,
        limits=limits.model_dump(exclude_none=True),
        baseline=before.baseline.model_dump(mode="json") if before and before.baseline else None,
        release=before.release if before else None,
        untimed=before.untimed if before else "",
    )


def _check_finite(case: Case, interleaved: Bench | None) -> Check | None:
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


def _check_accuracy(case: Case, limit: float | None) -> Check | None:
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
    if evaluation.reference and evaluation.reference not in _REFERENCES:
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


def _check_speedup(case: Case, limit: float | None) -> Check | None:
    if limit is None:
        return None
    name, bench = "speed-up", case.bench
    if reason := case.explain_unusable("bench"):
        return invalid(name, limit, reason)
    if bench is None or not bench.valid:
        return invalid(name, limit, first_doubt(bench))
    speedup = case.run.speedup if case.run else None
    reference = bench.reference
    if speedup is None or case.run is None or reference is None:
        absent = "; ".join(f"{name} is not available there: {why}" for name, why in bench.missing.items())
        return invalid(name, limit, absent or "no reference was timed with it")
    if reason := _explain_other_reference(case, reference):
        return invalid(name, limit, f"{reason}: run vitdeploy bench again")
    low, high = speedup.ci95
    sentence = f"{speedup.ratio:.2f} times as fast as {reference.name}, 95 % interval {low:.2f} to {high:.2f}"
    sentence += f", batch {case.run.batch}" if case.run.batch != 1 else ""
    sentence += "" if bench.scenario == "single-stream" else f", {bench.scenario}"
    status: Status = "pass" if low >= limit else "fail" if high < limit else "invalid"
    if status == "invalid":
        sentence += ": the limit is inside the interval, so measure longer (bench --seconds)"
    return Check(name=name, observed=speedup.ratio, limit=limit, status=status, why=sentence)


def _explain_other_reference(case: Case, reference: Run) -> str | None:
    """Return the reason if the bench was timed against another reference than the recipe's."""
    if case.against_artifact:
        same = reference.manifest == case.against_digest if case.against_digest else bool(reference.manifest)
        return None if same else f"it was timed against {reference.name}, not against {case.against}"
    if reference.manifest:
        return f"it was timed against {reference.name}, another artifact, not against {case.against}"
    names = _REFERENCES if case.against == REFERENCE else (case.against, f"{case.against} (plain)")
    if reference.name not in names:
        return f"it was timed against {reference.name}, not against {case.against}"
    return None


def _check_latency(case: Case, limit: float | None, percent: int) -> Check | None:
    """Check a percentile of the artifact's own latency. It needs no reference."""
    if limit is None:
        return None
    name = f"latency p{percent} (ms)"
    if reason := case.explain_unusable("bench"):
        return invalid(name, limit, reason)
    if case.bench is None or not case.bench.valid or case.run is None:
        return invalid(name, limit, first_doubt(case.bench))
    notes = (f", batch {case.run.batch}" if case.run.batch != 1 else "") + (
        "" if case.bench.scenario == "single-stream" else f", {case.bench.scenario}"
    )
    return _judge_percentile(name, limit, percent, case.run, notes)


def _check_end_to_end(case: Case, limit: float | None, percent: int) -> Check | None:
    """Check a percentile of what a caller waits for, from an encoded image to the answer."""
    if limit is None:
        return None
    name = f"end to end p{percent} (ms)"
    if reason := case.explain_unusable("bench"):
        return invalid(name, limit, reason)
    timed = case.bench.end_to_end if case.bench else None
    if case.bench is None or not case.bench.valid:
        return invalid(name, limit, first_doubt(case.bench))
    if timed is None:
        return invalid(name, limit, "it was not measured: run vitdeploy bench --end-to-end")
    shares = ", ".join(f"{stage.name} {stage.share_pct:.0f} %" for stage in timed.stages)
    return _judge_percentile(name, limit, percent, timed, f", on {timed.images}: {shares}")


def _judge_percentile(name: str, limit: float, percent: int, timed: Run | EndToEnd, notes: str) -> Check:
    """Judge a percentile by its 95 % interval."""
    observed = {50: timed.p50_ms, 90: timed.p90_ms, 99: timed.p99_ms}[percent]
    interval = {50: timed.p50_ci95, 90: timed.p90_ci95, 99: timed.p99_ci95}[percent]
    if interval is None:
        return invalid(name, limit, "the interval of the latency is not known: run vitdeploy bench again")
    if percent == _RAREST and timed.samples < MIN_P99_SAMPLES:
        return invalid(name, limit, f"p99 of {timed.samples} samples is their maximum: measure longer (--seconds)")
    status = decide(*interval, limit)
    sentence = f"{observed:.3g} ms, 95 % interval {interval[0]:.3g} to {interval[1]:.3g}{notes}"
    sentence += ": the limit is inside the interval, so measure longer (bench --seconds)" if status == "invalid" else ""
    return Check(name=name, observed=observed, limit=limit, status=status, why=sentence)


def _check_operating_point(case: Case, limits: GateSpec) -> Iterator[Check]:
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


def _check_fused(case: Case, limit: float | None) -> Check | None:
    if limit is None:
        return None
    name = "attention fused"
    if reason := case.explain_unusable("audit") or explain_unproven(case.audit):
        return invalid(name, limit, reason)
    percent, sentence = describe_fusion(case.audit)
    status: Status = "pass" if percent >= limit else "fail"
    return Check(name=name, observed=percent, limit=limit, status=status, why=sentence)


def _check_quantized(case: Case, limit: float | None) -> Check | None:
    """Check the share of multiply-accumulates with weights that run in the precision that was asked for."""
    if limit is None:
        return None
    name, audit = "quantized (%)", case.audit
    if (reason := case.explain_unusable("audit")) or audit is None:
        return invalid(name, limit, reason or "there is no audit.json")
    share = audit.quantized
    if share is None and audit.precision == "fp32":
        return Check(name=name, observed=0.0, limit=limit, status="fail", why="float32: nothing is quantized")
    if share is None:
        return invalid(name, limit, "the audit does not say what is quantized: export it again")
    if share.evidence != "compiled":
        return invalid(name, limit, f"this is {share.evidence} evidence, not read from what the device runs")
    if share.unknown:
        return invalid(name, limit, f"the multiply-accumulates of {share.unknown[0]} are not known before run time")
    status: Status = "pass" if share.macs_pct >= limit else "fail"
    reason = f"{share.macs_pct:.1f} % of the multiply-accumulates with weights run in {share.precision}"
    if share.outside:
        what, percent = next(iter(share.outside.items()))
        reason += f"; {percent:.1f} % do not: {what}"
    return Check(name=name, observed=share.macs_pct, limit=limit, status=status, why=reason)


def _check_size(case: Case, limit: float | None) -> Check | None:
    """Check the size of the deployed files, which is known without running anything."""
    if limit is None:
        return None
    if case.stage != "artifact" or case.size_bytes is None:
        return invalid("size (MiB)", limit, ONLY_A_BUNDLE)
    size = case.size_bytes / MIB
    status: Status = "pass" if size <= limit else "fail"
    reason = f"the deployed files have {size:.1f} MiB"
    return Check(name="size (MiB)", observed=size, limit=limit, status=status, why=reason)


def _check_memory(case: Case, limit: float | None) -> Check | None:
    """Check the peak resident memory of a process that opens the artifact and runs it once."""
    if limit is None:
        return None
    name = "memory (MiB)"
    if reason := case.explain_unusable("bench"):
        return invalid(name, limit, reason)
    startup = case.run.startup if case.run else None
    if startup is None or startup.peak_bytes is None:
        return invalid(name, limit, "the peak memory was not measured: run vitdeploy bench again, on Linux or macOS")
    peak = startup.peak_bytes / MIB
    engine = f", {startup.engine_bytes / MIB:.0f} MiB of it before the model was opened" if startup.engine_bytes else ""
    status: Status = "pass" if peak <= limit else "fail"
    return Check(name=name, observed=peak, limit=limit, status=status, why=f"peak of {peak:.0f} MiB{engine}")
