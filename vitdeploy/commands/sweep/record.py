"""The record of a trial: its figures, taken from the evidence beside its artifact."""

from __future__ import annotations

from typing import Any

from vitdeploy import targets, tasks
from vitdeploy.artifact import Artifact
from vitdeploy.commands.gate.evidence import make_case, read_evidence
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.evidence import Audit, Bench, Eval, TrialRecord, TrialState
from vitdeploy.frozen import replace
from vitdeploy.measure.front import LATENCY_DOUBT
from vitdeploy.verdict import judge


def describe_trial(trial: TrialSpec, status: TrialState) -> TrialRecord:
    """Return the record of a trial without figures."""
    recipe = trial.recipe
    target = targets.find(recipe.target)
    return TrialRecord(
        name=trial.name,
        setting=trial.setting,
        axes=trial.axes,
        model=recipe.model.spec,
        target=recipe.target.kind,
        device=recipe.target.device or target.device,
        precision=recipe.precision.kind or target.default_precision,
        status=status,
    )


def record_trial(
    trial: TrialSpec, artifact: Artifact, evaluation: Eval | None, audit: Audit, timing: Bench | None, seconds: float
) -> TrialRecord:
    """Return the record of a trial whose steps have ended well.

    Args:
        trial: its description.
        artifact: the artifact or bundle.
        evaluation: its accuracy; None without data.
        audit: the audit of what was compiled.
        timing: its bench; None for a bundle.
        seconds: the time that the bench was given.
    """
    manifest = artifact.manifest
    facts: dict[str, Any] = {
        "precision": manifest.target.precision,
        "random_weights": artifact.random_weights,
        "model_digest": manifest.model.digest,
        "model_code": manifest.model.code,
        "input_shape": manifest.preprocess.sample_shape,
        "outputs": tuple(output.name for output in manifest.outputs),
        "size_bytes": manifest.deployed_bytes,
        "fused": audit.attention.fused,
        "sites": audit.attention.sites,
        "doubts": _find_doubts(artifact, evaluation, timing),
    }
    if manifest.stage == "bundle":
        target = targets.find(trial.recipe.target)
        cannot = target.unavailable()
        facts["reason"] = "it is compiled on its device" if cannot is None else cannot.why
        facts["fix"] = "Copy the bundle there, and run vitdeploy compile, eval and bench."
    facts |= {} if evaluation is None else _describe_accuracy(evaluation)
    facts |= {} if timing is None else {**_describe_timing(timing), "bench_seconds": seconds}
    return describe_trial(trial, "bundle" if manifest.stage == "bundle" else "done").model_copy(update=facts)


def judge_trial(record: TrialRecord, trial: TrialSpec, artifact: Artifact) -> TrialRecord:
    """Add the verdict of the gate on the trial's limits, and store it beside the artifact."""
    limits = {key: value for key, value in trial.limits.model_dump().items() if value is not None}
    if not limits:
        return replace(record, limits={}, verdict="", failing=())
    evidence = read_evidence(artifact)
    verdict = judge(make_case(artifact, evidence, trial.limits), trial.limits, None)
    verdict = artifact.write_evidence(replace(verdict, digest=artifact.evidence_digest()))
    failing = tuple(f"{check.name}: {check.why}" for check in verdict.checks if check.status != "pass")
    return replace(record, limits=limits, verdict=verdict.verdict, failing=failing)


def _find_doubts(artifact: Artifact, evaluation: Eval | None, timing: Bench | None) -> tuple[str, ...]:
    """Return the reasons to distrust the figures of a trial."""
    doubts = []
    if artifact.random_weights:
        doubts.append("random weights: accuracy means nothing")
    doubts += [f"numbers: {doubt}" for doubt in artifact.manifest.doubts]
    if evaluation is not None:
        doubts += [f"accuracy: {doubt}" for doubt in evaluation.doubts]
        if evaluation.nonfinite:
            doubts.append(f"accuracy: NaN or infinity in the answers to {evaluation.nonfinite} samples")
    if timing is not None and not timing.valid:
        doubts += [f"{LATENCY_DOUBT}{doubt}" for doubt in timing.doubts or ("no reason was recorded",)]
    return tuple(doubts)


def _describe_accuracy(evaluation: Eval) -> dict[str, Any]:
    name, metric = next(iter(evaluation.metrics.items()), ("", None))
    facts: dict[str, Any] = {
        "data_digest": evaluation.data_digest,
        "samples": evaluation.n,
        "agreement": evaluation.agreement,
    }
    if metric is None:
        return facts
    figures = {"reference": metric.reference, "deployed": metric.deployed, "drop": metric.drop}
    about = {"metric": tasks.metric_names().get(name, name), "unit": metric.unit, "better": metric.better}
    return {**facts, **figures, **about, "drop_ci95": metric.ci95}


def _describe_timing(timing: Bench) -> dict[str, Any]:
    run, reference = timing.own, timing.reference
    if run is None:
        return {"machine": timing.machine}
    parts = [f"against {reference.name}" if reference else "without a reference", f"batch {run.batch}"]
    threads = (reference or run).threads  # all sides were given as many; an engine may use fewer
    parts += [] if threads is None else [f"{threads} threads"]
    streams = run.effective.get("streams", "")
    parts += [timing.scenario, *([f"{streams} streams"] if streams not in ("", "1") else [])]
    startup = run.startup
    return {
        "machine": timing.machine,
        "timing": ", ".join(parts),
        "p50_ms": run.p50_ms,
        "p50_ci95": run.p50_ci95,
        "p90_ms": run.p90_ms,
        "p99_ms": run.p99_ms,
        "throughput_ips": run.throughput_ips,
        "speedup": None if run.speedup is None else run.speedup.ratio,
        "speedup_ci95": None if run.speedup is None else run.speedup.ci95,
        "reference_p50_ms": None if reference is None else reference.p50_ms,
        "memory_bytes": None if startup is None else startup.peak_bytes,
    }
