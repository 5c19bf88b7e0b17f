"""Checks of an artifact against an earlier one, and the reasons why two may not be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vitdeploy.evidence import Check, Interval, Run, Status
from vitdeploy.measure.baseline import Baseline, Timing, describe_timing
from vitdeploy.measure.statistics import quotient_interval
from vitdeploy.recipe import GateSpec
from vitdeploy.verdict._case import MIB, Before, Case, decide, first_doubt, fused_percent, invalid, unproven

DEFAULT_MAX_SLOWDOWN_PCT = 2.0  # what two careful measurements of one artifact stay below
DEFAULT_MAX_GROWTH_PCT = 5.0  # peak memory of one artifact varies by one to two


def against_baseline(case: Case, limits: GateSpec, before: Before | None) -> list[Check | None]:
    """Check slow-down, fusion, size and memory; one invalid check where the two may not be compared."""
    if before is None:
        nothing = "there is no baseline to compare with: give --baseline"
        given = {"slow-down": limits.max_slowdown_pct, "growth": limits.max_growth_pct}
        return [invalid(name, limit, nothing) for name, limit in given.items() if limit is not None]
    limit = DEFAULT_MAX_SLOWDOWN_PCT if limits.max_slowdown_pct is None else limits.max_slowdown_pct
    baseline = before.baseline
    if baseline is not None:
        data = case.evaluation.data_digest if case.evaluation else ""
        reason = incomparable(baseline, case.model_digest, case.recipe, data)
        if reason is None and before.interleaved is None and not before.untimed:
            reason = _measured_otherwise(case, baseline)
        if reason is not None:
            return [invalid("baseline", "comparable", reason)]
    return [
        invalid("slow-down", limit, before.untimed) if before.untimed else _slowdown(case, limit, before),
        _fused_as_before(case, baseline),
        *(_growth_checks(case, baseline, before, limits.max_growth_pct) if baseline is not None else ()),
    ]


def incomparable(
    baseline: Baseline, model_digest: str, recipe: Mapping[str, str] | None, data_digest: str
) -> str | None:
    """Return why an artifact must not be compared with the baseline, wherever both were measured; None when it may be.

    Args:
        baseline: of the earlier artifact.
        model_digest: of the artifact's weights.
        recipe: the part of its recipe that decides speed and accuracy; None: not compared.
        data_digest: of the data that it was evaluated on; empty: it was not.
    """
    if baseline.model_digest != model_digest:
        return "the baseline is of another model, or of other weights"
    if recipe is not None and baseline.recipe and (differ := _differing(baseline.recipe, recipe)):
        return f"the baseline is of another recipe: {differ}; time the two with vitdeploy bench A B instead"
    if baseline.data_digest and data_digest and baseline.data_digest != data_digest:
        return "the baseline was evaluated on other data"
    return None


def _measured_otherwise(case: Case, baseline: Baseline) -> str | None:
    """Return why stored speed-ups must not be compared: they are of another machine, or were taken in another way."""
    machine = case.bench.machine if case.bench and case.bench.machine else case.machine
    if baseline.machine != machine:
        return (
            f"the baseline was taken on another machine ({baseline.machine or 'unnamed'}, not {machine or 'unnamed'})"
        )
    if baseline.timing is None or case.bench is None or not case.bench.runs:
        return None
    differ = _differing(_texts(baseline.timing), _texts(describe_timing(case.bench)))
    return f"the baseline was timed otherwise: {differ}" if differ else None


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Return the first key that differs, with both values."""
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key, 'not set')}, now it is {now.get(key, 'not set')}"
    return None


def _texts(timing: Timing | None) -> dict[str, str]:
    return {} if timing is None else {key: str(value) for key, value in timing.model_dump().items()}


def _slowdown(case: Case, limit: float, before: Before) -> Check:
    """Check how much slower than the baseline it is: timed in turns, or by two speed-ups over one reference."""
    name, bench, interleaved = "slow-down", case.bench, before.interleaved
    if case.stage != "artifact":
        return invalid(name, limit, "only a bundle: compile it on the device")
    if interleaved is not None:
        direct = interleaved.own.speedup if interleaved.own else None
        if not interleaved.valid or direct is None:
            return invalid(name, limit, first_doubt(interleaved))
        percent = _slower_percent(Interval(ratio=1.0, ci95=(1.0, 1.0)), direct)
    else:
        if reason := case.unusable("bench"):
            return invalid(name, limit, reason)
        if bench is None or not bench.valid or case.run is None or case.run.speedup is None:
            return invalid(name, limit, first_doubt(bench))
        if before.baseline is None or before.baseline.speedup is None:
            return invalid(name, limit, "the baseline has no speed-up: it was saved without a measurement")
        percent = _slower_percent(before.baseline.speedup, case.run.speedup)
    low, high = percent.ci95
    status = decide(low, high, limit)
    sentence = f"{percent.ratio:+.1f} % time against the baseline, 95 % interval {low:+.1f} to {high:+.1f}"
    sentence += ": the limit is inside, measure longer (--seconds)" if status == "invalid" else ""
    return Check(name=name, observed=percent.ratio, limit=limit, status=status, why=sentence)


def _slower_percent(before: Interval, now: Interval) -> Interval:
    """Return how much more time `now` takes in percent, from two speed-ups over the same reference."""
    times = quotient_interval(before, now)
    low, high = times.ci95
    return Interval(ratio=100 * (times.ratio - 1), ci95=(100 * (low - 1), 100 * (high - 1)))


def _fused_as_before(case: Case, baseline: Baseline | None) -> Check | None:
    if baseline is None or not baseline.sites or baseline.fused is None:
        return None
    name, limit = "attention fused as before", 100 * baseline.fused / baseline.sites
    if reason := case.unusable("audit") or unproven(case.audit):
        return invalid(name, limit, reason)
    percent, attention = fused_percent(case.audit)
    status: Status = "pass" if percent >= limit else "fail"
    sentence = f"{attention}; the baseline had {baseline.fused} of {baseline.sites}"
    return Check(name=name, observed=percent, limit=limit, status=status, why=sentence)


def _growth_checks(case: Case, baseline: Baseline, before: Before, asked: float | None) -> Iterator[Check]:
    """Check files and peak memory; what the baseline does not know is invalid if a limit was asked for.

    A baseline that was timed in turns was started here as well, by the same process that started the artifact; of one
    that could not be, only what another machine may have measured is known.
    """
    limit = DEFAULT_MAX_GROWTH_PCT if asked is None else asked
    unknown = "the baseline does not know it: save it again"
    if baseline.size_bytes:
        yield _growth("size as before", case.size_bytes, baseline.size_bytes, limit, "the size is not known")
    elif asked is not None:
        yield invalid("size as before", limit, unknown)
    interleaved, unmeasured = before.interleaved, "the peak memory was not measured"
    if before.untimed:
        earlier, now, unknown = None, None, before.untimed
    elif interleaved is None:
        earlier, now = baseline.peak_bytes, _peak_bytes(case.run)
        unmeasured = case.unusable("bench") or unmeasured
    else:
        earlier, now, unknown = _peak_bytes(interleaved.reference), _peak_bytes(interleaved.own), unmeasured
    if earlier:
        yield _growth("memory as before", now, earlier, limit, unmeasured)
    elif asked is not None or baseline.peak_bytes:
        yield invalid("memory as before", limit, unknown)


def _peak_bytes(run: Run | None) -> int | None:
    return run.startup.peak_bytes if run is not None and run.startup is not None else None


def _growth(name: str, now: int | None, before: int, limit: float, unknown: str) -> Check:
    if now is None:
        return invalid(name, limit, unknown)
    percent = 100 * (now / before - 1)
    status: Status = "pass" if 100 * now <= before * (100 + limit) else "fail"  # without the rounding of a quotient
    why = f"{percent:+.1f} %: {before / MIB:.1f} MiB before, {now / MIB:.1f} now"
    return Check(name=name, observed=percent, limit=limit, status=status, why=why)
