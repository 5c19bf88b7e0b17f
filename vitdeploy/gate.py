"""The gate: evidence and limits in, a verdict out. `judge` is pure.

Every check passes, fails or is invalid (it could not be decided). Absent, stale or doubtful evidence is invalid, and so
is a gate without limits: nothing happening is never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vitdeploy.evidence import Audit, Bench, Check, Eval, Gate, Interval, Run, Status
from vitdeploy.measure.baseline import Baseline
from vitdeploy.measure.statistics import quotient_interval, required_samples
from vitdeploy.recipe import GateSpec

DEFAULT_MAX_SLOWDOWN_PCT = 2.0  # about what two careful measurements of one artifact differ by

Kind = Literal["audit", "bench", "eval"]


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
    """
    case = _Case(audit, bench, evaluation, missing, stage, manifest)
    checks = [
        _finite(case),
        _accuracy(case, limits.max_drop_pp, random_weights),
        _speedup(case, limits.min_speedup),
        _fused(case, limits.min_fused_pct),
        *_against_baseline(case, limits.max_slowdown_pct, baseline, interleaved, machine, model_digest),
    ]
    found = tuple(check for check in checks if check is not None)
    if not found:
        why = "no limits were given: give --max-drop, --min-speedup, --min-fused or --baseline"
        found = (Check(name="limits", observed=None, limit="at least one", status="invalid", why=why),)
    statuses = {check.status for check in found}
    verdict: Status = "fail" if "fail" in statuses else "invalid" if "invalid" in statuses else "pass"
    return Gate(verdict=verdict, checks=found, manifest=manifest)


@dataclass(frozen=True)
class _Case:
    """The evidence of one artifact, and why a piece of it may not be used."""

    audit: Audit | None
    bench: Bench | None
    evaluation: Eval | None
    missing: Mapping[str, str]
    stage: str
    manifest: str

    def unusable(self, kind: Kind) -> str | None:
        """Why nothing can be concluded from this piece of evidence; None when something can."""
        found: Audit | Bench | Eval | None = {"audit": self.audit, "bench": self.bench, "eval": self.evaluation}[kind]
        if self.stage != "artifact":
            return "only a bundle: compile it on the device"
        if kind in self.missing:
            return self.missing[kind]
        if found is None:
            return f"there is no {kind}.json"
        if found.manifest != self.manifest:
            return f"{kind}.json is about another manifest: make it again"
        return None

    @property
    def run(self) -> Run | None:
        """The timing of this artifact, where it may be used."""
        if self.unusable("bench") or self.bench is None or not self.bench.runs:
            return None
        return self.bench.runs[1] if len(self.bench.runs) > 1 else self.bench.runs[0]


def _finite(case: _Case) -> Check | None:
    """Fails when this artifact ever gave NaN or infinity, whatever the limits are."""
    evaluation = None if case.unusable("eval") else case.evaluation
    if evaluation is not None and evaluation.nonfinite:
        observed, why = evaluation.nonfinite, f"{evaluation.nonfinite} of {evaluation.n} samples gave NaN or infinity"
    elif case.run is not None and not case.run.finite:
        observed, why = 1, "the outputs while timing had NaN or infinity"
    else:
        return None
    return Check(name="finite outputs", observed=observed, limit=0.0, status="fail", why=why)


def _accuracy(case: _Case, limit: float | None, random_weights: bool) -> Check | None:
    """Non-inferiority: the whole one-sided interval of the drop has to stay below the limit."""
    if limit is None:
        return None
    name, evaluation = "accuracy drop", case.evaluation
    if why := case.unusable("eval"):
        return _invalid(name, limit, why)
    if random_weights:
        return _invalid(name, limit, "random weights: accuracy means nothing")
    if evaluation is None or not evaluation.n or not evaluation.metrics:
        return _invalid(name, limit, "no sample was compared")
    if evaluation.doubts:
        return _invalid(name, limit, f"doubtful: {evaluation.doubts[0]}")
    metric, drop = next(iter(evaluation.metrics.items()))
    if not all(map(math.isfinite, (drop.reference, drop.deployed, drop.drop, drop.lower95, drop.upper95))):
        return Check(name=name, observed=None, limit=limit, status="fail", why=f"{metric} is not finite")
    status = _decide(drop.lower95, drop.upper95, limit)
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


def _speedup(case: _Case, limit: float | None) -> Check | None:
    if limit is None:
        return None
    name, bench = "speed-up", case.bench
    if why := case.unusable("bench"):
        return _invalid(name, limit, why)
    if bench is None or not bench.valid:
        return _invalid(name, limit, _doubt(bench))
    speedup = case.run.speedup if case.run else None
    if speedup is None:
        return _invalid(name, limit, "no reference was timed beside it")
    low, high = speedup.ci95
    told = f"{speedup.ratio:.2f} times as fast as {bench.runs[0].name}, 95 % interval {low:.2f} to {high:.2f}"
    status: Status = "pass" if low >= limit else "fail" if high < limit else "invalid"
    if status == "invalid":
        told += ": the limit is inside, measure longer (--seconds)"
    return Check(name=name, observed=speedup.ratio, limit=limit, status=status, why=told)


def _fused(case: _Case, limit: float | None) -> Check | None:
    if limit is None:
        return None
    name = "attention fused"
    if why := case.unusable("audit") or _unproven(case.audit):
        return _invalid(name, limit, why)
    percent, attention = _fused_percent(case.audit)
    status: Status = "pass" if percent >= limit else "fail"
    return Check(name=name, observed=percent, limit=limit, status=status, why=attention)


def _against_baseline(
    case: _Case,
    limit: float | None,
    baseline: Baseline | None,
    interleaved: Bench | None,
    machine: str,
    model_digest: str,
) -> list[Check | None]:
    if baseline is None and interleaved is None:
        nothing = "there is no baseline to compare with: give --baseline"
        return [] if limit is None else [_invalid("slow-down", limit, nothing)]
    limit = DEFAULT_MAX_SLOWDOWN_PCT if limit is None else limit
    machine = case.bench.machine if case.bench and case.bench.machine else machine
    if baseline and (why := _incomparable(case, baseline, interleaved, machine, model_digest)):
        return [_invalid("baseline", "comparable", why)]
    return [_slowdown(case, limit, baseline, interleaved), _fused_as_before(case, baseline)]


def _incomparable(
    case: _Case, baseline: Baseline, interleaved: Bench | None, machine: str, model_digest: str
) -> str | None:
    """Why two artifacts must not be compared. What was timed in turns was timed on one machine, this one."""
    if baseline.model_digest != model_digest:
        return "the baseline is of another model, or of other weights"
    if interleaved is None and baseline.machine != machine:
        return (
            f"the baseline was taken on another machine ({baseline.machine or 'unnamed'}, not {machine or 'unnamed'})"
        )
    data = case.evaluation.data_digest if case.evaluation else ""
    if baseline.data_digest and data and baseline.data_digest != data:
        return "the baseline was evaluated on other data"
    return None


def _slowdown(case: _Case, limit: float, baseline: Baseline | None, interleaved: Bench | None) -> Check:
    """How much slower than the baseline, in percent: timed in turns, or by the two speed-ups over the reference."""
    name, now = "slow-down", case.bench
    if case.stage != "artifact":
        return _invalid(name, limit, "only a bundle: compile it on the device")
    if interleaved is not None:
        direct = interleaved.runs[1].speedup if len(interleaved.runs) > 1 else None
        if not interleaved.valid or direct is None:
            return _invalid(name, limit, _doubt(interleaved))
        percent = _slower_percent(Interval(ratio=1.0, ci95=(1.0, 1.0)), direct)
    else:
        if why := case.unusable("bench"):
            return _invalid(name, limit, why)
        if now is None or not now.valid or case.run is None or case.run.speedup is None:
            return _invalid(name, limit, _doubt(now))
        if baseline is None or baseline.speedup is None:
            return _invalid(name, limit, "the baseline has no speed-up: it was saved without a measurement")
        percent = _slower_percent(baseline.speedup, case.run.speedup)
    low, high = percent.ci95
    status = _decide(low, high, limit)
    told = f"{percent.ratio:+.1f} % time against the baseline, 95 % interval {low:+.1f} to {high:+.1f}"
    told += ": the limit is inside, measure longer (--seconds)" if status == "invalid" else ""
    return Check(name=name, observed=percent.ratio, limit=limit, status=status, why=told)


def _slower_percent(before: Interval, now: Interval) -> Interval:
    """How much more time `now` takes, from two speed-ups over the same reference."""
    times = quotient_interval(before, now)
    low, high = times.ci95
    return Interval(ratio=100 * (times.ratio - 1), ci95=(100 * (low - 1), 100 * (high - 1)))


def _fused_as_before(case: _Case, baseline: Baseline | None) -> Check | None:
    if baseline is None or not baseline.sites or baseline.fused is None:
        return None
    name, before = "attention fused as before", 100 * baseline.fused / baseline.sites
    if why := case.unusable("audit") or _unproven(case.audit):
        return _invalid(name, before, why)
    percent, attention = _fused_percent(case.audit)
    status: Status = "pass" if percent >= before else "fail"
    why = f"{attention}; the baseline had {baseline.fused} of {baseline.sites}"
    return Check(name=name, observed=percent, limit=before, status=status, why=why)


def _unproven(audit: Audit | None) -> str | None:
    if audit is None or not audit.attention.sites:
        return "no attention site to judge"
    if audit.attention.evidence != "compiled":
        return f"the fusion is {audit.attention.evidence} evidence, not read from what the device runs"
    return None


def _fused_percent(audit: Audit | None) -> tuple[float, str]:
    attention = audit.attention if audit else None
    if attention is None or attention.percent is None:
        return 0.0, "no attention site"
    told = f"{attention.fused} of {attention.sites} attention sites run as one kernel"
    if attention.unfused:
        told += f"; {attention.unfused[0].site}: {attention.unfused[0].reason}"
    return attention.percent, told


def _decide(low: float, high: float, limit: float) -> Status:
    """Where the interval of something that must stay small lies."""
    return "pass" if high <= limit else "fail" if low > limit else "invalid"


def _doubt(bench: Bench | None) -> str:
    return f"doubtful: {bench.doubts[0]}" if bench and bench.doubts else "no two sides were timed against each other"


def _invalid(name: str, limit: float | str, why: str) -> Check:
    return Check(name=name, observed=None, limit=limit, status="invalid", why=why)
