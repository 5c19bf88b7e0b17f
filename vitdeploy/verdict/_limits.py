"""Checks of one figure against its limit: latency, speed-up, fusion, quantized share, size and memory."""

from __future__ import annotations

import math

from vitdeploy.evidence import Bench, Check, EndToEnd, Run, Status, Sustained
from vitdeploy.measure.latency import MIN_P99_SAMPLES
from vitdeploy.recipe import REFERENCE
from vitdeploy.verdict._case import (
    MIB,
    ONLY_A_BUNDLE,
    REFERENCES,
    Case,
    decide,
    describe_fusion,
    explain_unproven,
    first_doubt,
    invalid,
)

_RAREST = 99
_TAIL = 0.025
"""The chance that all samples lie below the true percentile, at which the largest of them is its upper 95 % bound."""


def check_speedup(case: Case, limit: float | None) -> Check | None:
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
        absent = "; ".join(f"{opponent} is not available there: {why}" for opponent, why in bench.missing.items())
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
    names = REFERENCES if case.against == REFERENCE else (case.against, f"{case.against} (plain)")
    if reference.name not in names:
        return f"it was timed against {reference.name}, not against {case.against}"
    return None


def check_latency(case: Case, limit: float | None, percent: int) -> Check | None:
    """Check a percentile of the artifact's own latency. It needs no reference."""
    if limit is None:
        return None
    name = f"latency p{percent} (ms)"
    if reason := case.explain_unusable("bench"):
        return invalid(name, limit, reason)
    sustained = case.bench.sustained if case.bench else None
    if sustained is not None and sustained.doubts:
        return invalid(name, limit, f"doubtful: {sustained.doubts[0]}")
    if sustained is not None:
        return _judge_percentile(name, limit, percent, sustained, _describe_sustained(sustained))
    if case.bench is None or not case.bench.valid or case.run is None:
        return invalid(name, limit, first_doubt(case.bench))
    notes = (f", batch {case.run.batch}" if case.run.batch != 1 else "") + (
        "" if case.bench.scenario == "single-stream" else f", {case.bench.scenario}"
    )
    return _judge_percentile(name, limit, percent, case.run, notes + _describe_device(case.bench, percent, limit))


def _describe_sustained(sustained: Sustained) -> str:
    """Return how the figure came about: `, sustained, batch 8, steady after 12 min at 71 °C`."""
    last = sustained.course[-1]
    heat = "" if last.celsius is None else f" at {last.celsius:.0f} °C"
    batch = "" if sustained.batch == 1 else f", batch {sustained.batch}"
    return f", sustained{batch}, steady after {last.minutes:.0f} min{heat}"


def _describe_device(bench: Bench, percent: int, limit: float) -> str:
    """Return the part of the latency that the device itself takes, and whether that alone is within the limit."""
    time = next((time for time in bench.device if time.source == "session"), None)
    if time is None:
        return ""
    alone = {50: time.device_p50_ms, 90: time.device_p90_ms, 99: time.device_p99_ms}[percent]
    return f", {alone:.3g} ms of it on the device ({'within' if alone <= limit else 'above'} the limit)"


def check_end_to_end(case: Case, limit: float | None, percent: int) -> Check | None:
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


def _judge_percentile(name: str, limit: float, percent: int, timed: Run | EndToEnd | Sustained, notes: str) -> Check:
    """Judge a percentile by its 95 % interval."""
    observed = {50: timed.p50_ms, 90: timed.p90_ms, 99: timed.p99_ms}[percent]
    interval = {50: timed.p50_ci95, 90: timed.p90_ci95, 99: timed.p99_ci95}[percent]
    if interval is None:
        return invalid(name, limit, "the interval of the latency is not known: run vitdeploy bench again")
    if percent == _RAREST and timed.samples < MIN_P99_SAMPLES:
        return invalid(name, limit, f"p99 of {timed.samples} samples is their maximum: measure longer (--seconds)")
    status = decide(*interval, limit)
    needed = math.ceil(math.log(_TAIL) / math.log(percent / 100))
    if status == "pass" and timed.samples < needed:
        reason = (
            f"{timed.samples} samples say too little about p{percent}, {needed} are enough: measure longer (--seconds)"
        )
        return invalid(name, limit, reason)
    sentence = f"{observed:.3g} ms, 95 % interval {interval[0]:.3g} to {interval[1]:.3g}{notes}"
    sentence += ": the limit is inside the interval, so measure longer (bench --seconds)" if status == "invalid" else ""
    return Check(name=name, observed=observed, limit=limit, status=status, why=sentence)


def check_fused(case: Case, limit: float | None) -> Check | None:
    if limit is None:
        return None
    name = "attention fused"
    if reason := case.explain_unusable("audit") or explain_unproven(case.audit):
        return invalid(name, limit, reason)
    percent, sentence = describe_fusion(case.audit)
    status: Status = "pass" if percent >= limit else "fail"
    return Check(name=name, observed=percent, limit=limit, status=status, why=sentence)


def check_quantized(case: Case, limit: float | None) -> Check | None:
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


def check_size(case: Case, limit: float | None) -> Check | None:
    """Check the size of the deployed files, which is known without running anything."""
    if limit is None:
        return None
    if case.stage != "artifact" or case.size_bytes is None:
        return invalid("size (MiB)", limit, ONLY_A_BUNDLE)
    size = case.size_bytes / MIB
    status: Status = "pass" if size <= limit else "fail"
    reason = f"the deployed files have {size:.1f} MiB"
    return Check(name="size (MiB)", observed=size, limit=limit, status=status, why=reason)


def check_memory(case: Case, limit: float | None) -> Check | None:
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
