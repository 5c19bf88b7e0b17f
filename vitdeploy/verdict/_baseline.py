"""Checks of an artifact against an earlier one, and reasons why two artifacts cannot be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vitdeploy.evidence import Check, Interval, Run, Status
from vitdeploy.measure.baseline import Baseline, Timing, describe_timing
from vitdeploy.measure.statistics import quotient_interval
from vitdeploy.recipe import GateSpec
from vitdeploy.verdict._case import (
    MIB,
    ONLY_A_BUNDLE,
    Before,
    Case,
    decide,
    describe_fusion,
    explain_unproven,
    first_doubt,
    invalid,
)
from vitdeploy.verdict._possible import find_impossible

DEFAULT_MAX_SLOWDOWN_PCT = 2.0  # two careful measurements of one artifact differ by less
DEFAULT_MAX_GROWTH_PCT = 5.0  # the peak memory of one artifact varies by 1 to 2 %


def check_against_baseline(case: Case, limits: GateSpec, before: Before | None) -> list[Check | None]:
    """Check slow-down, fusion, size and memory; or return one invalid check if the two cannot be compared."""
    if before is None:
        needing = {"slow-down": limits.max_slowdown_pct, "growth": limits.max_growth_pct}
        missing = "there is no baseline to compare with: give --baseline"
        return [invalid(name, limit, missing) for name, limit in needing.items() if limit is not None]
    limit = DEFAULT_MAX_SLOWDOWN_PCT if limits.max_slowdown_pct is None else limits.max_slowdown_pct
    baseline = before.baseline
    if before.release is not None or before.unreleased:
        return _check_beside_release(case, limits, before)
    if baseline is not None:
        if impossible := find_impossible("the baseline", baseline):
            return [invalid("baseline", "possible values", impossible)]
        data = case.evaluation.data_digest if case.evaluation else ""
        reason = explain_incomparable(baseline, case.model_digest, case.recipe, data)
        if reason is None and before.interleaved is None and not before.untimed:
            reason = _compare_measurements(case, baseline)
        if reason is not None:
            return [invalid("baseline", "comparable", reason)]
    return [
        invalid("slow-down", limit, before.untimed) if before.untimed else _check_slowdown(case, limit, before),
        _check_fused_as_before(case, baseline),
        *(_check_growth(case, baseline, before, limits.max_growth_pct) if baseline is not None else ()),
    ]


def _check_beside_release(case: Case, limits: GateSpec, before: Before) -> list[Check | None]:
    """Check size, and slow-down and memory if they have a limit, against an artifact with other weights."""
    checks: list[Check | None] = []
    if limits.max_slowdown_pct is not None:
        name, limit = "slow-down", limits.max_slowdown_pct
        checks.append(invalid(name, limit, before.untimed) if before.untimed else _check_slowdown(case, limit, before))
    size = before.release.size_bytes[0] if before.release is not None else None
    growth = DEFAULT_MAX_GROWTH_PCT if limits.max_growth_pct is None else limits.max_growth_pct
    if size:
        checks.append(_compare_bytes("size as before", case.size_bytes, size, growth, "the size is unknown"))
    if limits.max_growth_pct is not None:
        checks.append(_check_memory_beside_release(before, growth))
    return checks


def _check_memory_beside_release(before: Before, limit: float) -> Check:
    """Check the peak memory of both artifacts, which were started one after the other to be timed."""
    name, both = "memory as before", before.interleaved
    if both is None:
        return invalid(name, limit, before.untimed or "both artifacts are started only for --max-slowdown: give it too")
    then, now = _peak_bytes(both.reference), _peak_bytes(both.own)
    unmeasured = "the peak memory was not measured"
    return _compare_bytes(name, now, then, limit, unmeasured) if then else invalid(name, limit, unmeasured)


def explain_incomparable(
    baseline: Baseline, model_digest: str, recipe: Mapping[str, str] | None, data_digest: str
) -> str | None:
    """Return the reason why an artifact cannot be compared with the baseline, on any machine; None if it can.

    Args:
        baseline: of the earlier artifact.
        model_digest: digest of the artifact's weights.
        recipe: the keys of its recipe that decide speed and accuracy; None: do not compare.
        data_digest: digest of the data that it was evaluated on; empty if it was not.
    """
    if baseline.model_digest != model_digest:
        return "the baseline is of another model, or of other weights"
    if recipe is not None and baseline.recipe and (difference := _find_difference(baseline.recipe, recipe)):
        return f"the baseline is of another recipe: {difference}; time the two with vitdeploy bench A B instead"
    if baseline.data_digest and data_digest and baseline.data_digest != data_digest:
        return "the baseline was evaluated on other data"
    return None


def _compare_measurements(case: Case, baseline: Baseline) -> str | None:
    """Return the reason why stored speed-ups cannot be compared: another machine, or another way to measure."""
    machine = case.bench.machine if case.bench and case.bench.machine else case.machine
    if baseline.machine != machine:
        before, now = baseline.machine or "unnamed", machine or "unnamed"
        return f"the baseline was measured on another machine ({before}, not {now})"
    if baseline.timing is None or case.bench is None or not case.bench.runs:
        return None
    difference = _find_difference(_to_texts(baseline.timing), _to_texts(describe_timing(case.bench)))
    return f"the baseline was timed in another way: {difference}" if difference else None


def _find_difference(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Return the first key that differs, with both values."""
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key, 'not set')}, now it is {now.get(key, 'not set')}"
    return None


def _to_texts(timing: Timing | None) -> dict[str, str]:
    return {} if timing is None else {key: str(value) for key, value in timing.model_dump().items()}


def _check_slowdown(case: Case, limit: float, before: Before) -> Check:
    name = "slow-down"
    percent = _measure_slowdown(case, before)
    if isinstance(percent, str):
        return invalid(name, limit, percent)
    low, high = percent.ci95
    status = decide(low, high, limit)
    sentence = f"{percent.ratio:+.1f} % time against the baseline, 95 % interval {low:+.1f} to {high:+.1f}"
    sentence += ": the limit is inside the interval, so measure longer (bench --seconds)" if status == "invalid" else ""
    return Check(name=name, observed=percent.ratio, limit=limit, status=status, why=sentence)


def _measure_slowdown(case: Case, before: Before) -> Interval | str:
    """Return the slow-down in percent, timed in turns or from two speed-ups over one reference; else the reason."""
    bench, interleaved = case.bench, before.interleaved
    if case.stage != "artifact":
        return ONLY_A_BUNDLE
    if interleaved is not None:
        direct = interleaved.own.speedup if interleaved.own else None
        if not interleaved.valid or direct is None:
            return first_doubt(interleaved)
        return _slower_percent(Interval(ratio=1.0, ci95=(1.0, 1.0)), direct)
    if reason := case.explain_unusable("bench"):
        return reason
    if bench is None or not bench.valid or case.run is None or case.run.speedup is None:
        return first_doubt(bench)
    if before.baseline is None or before.baseline.speedup is None:
        return "the baseline has no speed-up: it was saved without a measurement"
    return _slower_percent(before.baseline.speedup, case.run.speedup)


def _slower_percent(before: Interval, now: Interval) -> Interval:
    """Return the additional time that `now` takes in percent, from two speed-ups over the same reference."""
    times = quotient_interval(before, now)
    low, high = times.ci95
    return Interval(ratio=100 * (times.ratio - 1), ci95=(100 * (low - 1), 100 * (high - 1)))


def _check_fused_as_before(case: Case, baseline: Baseline | None) -> Check | None:
    if baseline is None or not baseline.sites or baseline.fused is None:
        return None
    name, limit = "attention fused as before", 100 * baseline.fused / baseline.sites
    if reason := case.explain_unusable("audit") or explain_unproven(case.audit):
        return invalid(name, limit, reason)
    percent, sentence = describe_fusion(case.audit)
    is_elsewhere = baseline.audited_on and case.audited_on and baseline.audited_on != case.audited_on
    if is_elsewhere and percent < 100:  # more than all cannot have been fused there
        places = f"the attention of the baseline was read on another CPU ({baseline.audited_on}, not {case.audited_on})"
        advice = "run vitdeploy bench and inspect of the baseline on this machine, and gate again"
        return invalid(name, limit, f"{places}, whose engine may fuse otherwise: {advice}")
    status: Status = "pass" if percent >= limit else "fail"
    sentence = f"{sentence}; the baseline had {baseline.fused} of {baseline.sites}"
    return Check(name=name, observed=percent, limit=limit, status=status, why=sentence)


def _check_growth(case: Case, baseline: Baseline, before: Before, requested: float | None) -> Iterator[Check]:
    """Check files and peak memory. With a requested limit, a fact that the baseline lacks gives an invalid check.

    A baseline that was timed in turns was also started here, like the artifact. If that was impossible, its peak memory
    may be of another machine, and is not compared.
    """
    limit = DEFAULT_MAX_GROWTH_PCT if requested is None else requested
    unknown = "the baseline does not have this figure: save it again"
    if baseline.size_bytes:
        yield _compare_bytes("size as before", case.size_bytes, baseline.size_bytes, limit, "the size is unknown")
    elif requested is not None:
        yield invalid("size as before", limit, unknown)
    interleaved, unmeasured = before.interleaved, "the peak memory was not measured"
    if before.untimed:
        then, now, unknown = None, None, before.untimed
    elif interleaved is None:
        then, now = baseline.peak_bytes, _peak_bytes(case.run)
        unmeasured = case.explain_unusable("bench") or unmeasured
    else:
        then, now, unknown = _peak_bytes(interleaved.reference), _peak_bytes(interleaved.own), unmeasured
    if then:
        yield _compare_bytes("memory as before", now, then, limit, unmeasured)
    elif requested is not None or baseline.peak_bytes:
        yield invalid("memory as before", limit, unknown)


def _peak_bytes(run: Run | None) -> int | None:
    return run.startup.peak_bytes if run is not None and run.startup is not None else None


def _compare_bytes(name: str, now: int | None, before: int, limit: float, unknown: str) -> Check:
    if now is None:
        return invalid(name, limit, unknown)
    percent = 100 * (now / before - 1)
    status: Status = "pass" if 100 * now <= before * (100 + limit) else "fail"  # exact: a quotient would be rounded
    reason = f"{percent:+.1f} %: {before / MIB:.1f} MiB before, {now / MIB:.1f} now"
    return Check(name=name, observed=percent, limit=limit, status=status, why=reason)
