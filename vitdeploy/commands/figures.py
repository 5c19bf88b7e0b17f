"""The figures of an artifact, taken from the evidence about it, for what shows several artifacts side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vitdeploy import tasks
from vitdeploy.artifact import Artifact
from vitdeploy.evidence import Audit, Bench, Eval, Provenance, Run, TrialRecord
from vitdeploy.measure.front import LATENCY_DOUBT
from vitdeploy.recipe import Recipe
from vitdeploy.runtime.provenance import list_reference_libraries

_DIGEST = 12


def record_artifact(
    name: str, artifact: Artifact, evaluation: Eval | None, audit: Audit | None, timing: Bench | None
) -> TrialRecord:
    """Return the record of an artifact that may belong to no sweep: see `read_figures`.

    Args:
        name: its name beside the others.
        artifact: the artifact or bundle.
        evaluation: its accuracy; None if there is none, as for `audit` and `timing`.
        audit: the audit of what was compiled.
        timing: its bench.
    """
    manifest = artifact.manifest
    record = TrialRecord(
        name=name,
        setting="",
        model=manifest.model.spec,
        target=manifest.target.kind,
        device=manifest.target.device,
        status="bundle" if manifest.stage == "bundle" else "done",
    )
    return record.model_copy(update=read_figures(artifact, evaluation, audit, timing))


def read_figures(
    artifact: Artifact, evaluation: Eval | None, audit: Audit | None, timing: Bench | None
) -> dict[str, Any]:
    """Return the figures of an artifact by the names of `TrialRecord`.

    Args:
        artifact: the artifact or bundle.
        evaluation: its accuracy; None without data.
        audit: the audit of what was compiled; None if it cannot be read.
        timing: its bench; None for a bundle.
    """
    manifest = artifact.manifest
    figures: dict[str, Any] = {
        "precision": manifest.target.precision,
        "random_weights": artifact.random_weights,
        "model_digest": manifest.model.digest,
        "model_code": manifest.model.code,
        "input_shape": manifest.preprocess.sample_shape,
        "outputs": tuple(output.name for output in manifest.outputs),
        "size_bytes": manifest.deployed_bytes,
        "doubts": _find_doubts(artifact, evaluation, timing),
    }
    figures |= {} if audit is None else {"fused": audit.attention.fused, "sites": audit.attention.sites}
    figures |= {} if evaluation is None else _describe_accuracy(evaluation)
    figures |= {} if timing is None else _describe_timing(timing)
    return figures


def list_keys(recipe: Recipe) -> dict[str, str | float | int | bool]:
    """Return the keys of a recipe, such as `recipe.target.kind`, without limits and without those that are None."""
    return dict(_flatten("recipe", recipe.model_dump(mode="json", exclude={"gate"})))


def _flatten(path: str, value: Any) -> Iterator[tuple[str, str | float | int | bool]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{path}.{key}", inner)
    elif isinstance(value, list):
        if value:
            yield path, json.dumps(value, ensure_ascii=False)
    elif value is not None:
        yield path, value


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
    origin = timing.provenance
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
        "reference_version": "" if reference is None else _name_reference_version(reference, origin),
        "engine": "" if origin is None else origin.engine,
        "memory_bytes": None if startup is None else startup.peak_bytes,
    }


def _name_reference_version(reference: Run, origin: Provenance | None) -> str:
    """Return the library that ran a reference, with its version, or the artifact that it is; empty if not known."""
    if reference.manifest:
        return f"artifact {reference.manifest[:_DIGEST]}"
    versions = {} if origin is None else origin.versions
    libraries = list_reference_libraries(reference.name)
    return next((f"{name} {versions[name]}" for name in libraries if name in versions), "")
