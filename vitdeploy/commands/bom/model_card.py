"""The model card inside a bill of materials: parameters, metrics with their intervals, and known limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vitdeploy import tasks
from vitdeploy.artifact import Artifact, TensorSpec
from vitdeploy.commands.gate.evidence import Judged
from vitdeploy.evidence import Audit, Bench, Eval
from vitdeploy.verdict import EvidenceName


def describe_model(artifact: Artifact, evidence: Judged, datasets: list[str]) -> dict[str, Any]:
    """Return the model card of an artifact.

    Args:
        artifact: the artifact or bundle.
        evidence: its evidence. Only figures that were computed from raw data are listed, and none with a doubt. If a
            piece contradicts another one, no metric is listed.
        datasets: references to the data that it was calibrated and evaluated on.
    """
    manifest, examined = artifact.manifest, evidence.examined
    parameters: dict[str, Any] = {
        "task": tasks.find(manifest.recipe.task).name,
        **({"architectureFamily": "vision transformer"} if evidence.stored.structure.attention else {}),
        "modelArchitecture": manifest.model.spec,
        "inputs": [{"format": _format(spec)} for spec in manifest.inputs],
        "outputs": [{"format": _format(spec)} for spec in manifest.outputs],
    }
    if datasets:
        parameters["datasets"] = [{"ref": name} for name in datasets]
    metrics: list[dict[str, Any]] = []
    limits = [*manifest.doubts]
    if artifact.random_weights:
        limits.insert(0, "random weights: its answers mean nothing")
    if examined.faults:
        fault = examined.faults[0]
        limits.append(f"its evidence is refused, so no metric is listed: {fault.name}: {fault.why}")
    else:
        metrics += [] if evidence.evaluation is None else _list_accuracy(evidence.evaluation)
        metrics += [] if evidence.bench is None else _list_speed(evidence.bench)
        limits += _explain_unlisted(evidence)
    card: dict[str, Any] = {"modelParameters": parameters}
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    if limits:
        card["considerations"] = {"technicalLimitations": list(dict.fromkeys(limits))}
    card["properties"] = _list_properties(artifact, evidence.stored.audit)
    return card


def _format(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _explain_unlisted(evidence: Judged) -> Iterator[str]:
    """Yield the doubts about evidence, and why figures of stored evidence are not listed."""
    examined = evidence.examined
    pieces: dict[EvidenceName, Eval | Bench | None] = {"eval": examined.evaluation, "bench": examined.bench}
    for name, piece in pieces.items():
        if piece is None:
            continue
        if reason := examined.missing.get(name):
            yield f"its figures are not listed: {reason}"
        yield from piece.doubts


def _list_accuracy(evaluation: Eval) -> list[dict[str, Any]]:
    """Return the metrics and their drops; none of a doubtful evaluation."""
    if evaluation.doubts:
        return []
    metrics: list[dict[str, Any]] = []
    where = f"{evaluation.n} samples of the evaluation data"
    for name, metric in evaluation.metrics.items():
        unit = f" ({metric.unit})" if metric.unit else ""
        metrics.append({"type": f"{name}{unit}", "value": _number(metric.deployed), "slice": where})
        metrics.append(
            {
                "type": f"drop of {name} against the float32 reference{unit}",
                "value": _number(metric.drop),
                "slice": where,
                "confidenceInterval": _interval(metric.ci95),
            }
        )
    return metrics


def _list_speed(bench: Bench) -> list[dict[str, Any]]:
    """Return latency and speed-up of the artifact; none of a doubtful measurement."""
    run = bench.own
    if run is None or not bench.valid:
        return []
    where = f"batch {run.batch}, machine {bench.machine}"
    metrics: list[dict[str, Any]] = [
        {"type": f"latency p{percent} (ms)", "value": _number(value), "slice": where}
        for percent, value in ((50, run.p50_ms), (90, run.p90_ms), (99, run.p99_ms))
    ]
    if run.speedup is not None and bench.reference is not None:
        metrics.append(
            {
                "type": f"speed-up over {bench.reference.name}",
                "value": _number(run.speedup.ratio),
                "slice": where,
                "confidenceInterval": _interval(run.speedup.ci95),
            }
        )
    return metrics


def _list_properties(artifact: Artifact, audit: Audit | None) -> list[dict[str, str]]:
    manifest = artifact.manifest
    quantized, share = manifest.quantized, audit.quantized if audit is not None else None
    calibration = None if quantized is None else quantized.calibration
    facts: dict[str, object] = {
        "stage": manifest.stage,
        "precision": manifest.target.precision,
        "target": manifest.target.kind,
        "device": manifest.target.device,
        "engine": manifest.target.backend,
        "parameters": manifest.model.parameters,
        "weights": manifest.model.weights,
        "quantization": None if quantized is None else quantized.method,
        "quantizer": None if quantized is None else quantized.quantizer,
        "quantized linears": None if quantized is None else quantized.quantized,
        "calibration images": None if calibration is None else calibration.images,
        "weights in this precision (%)": None if share is None else _number(share.weights_pct),
        "multiply-accumulates in this precision (%)": None if share is None else _number(share.macs_pct),
    }
    if audit is not None:
        facts["attention fused"] = f"{audit.attention.fused} of {audit.attention.sites} ({audit.attention.evidence})"
    return [
        {"name": f"vitdeploy:{name}", "value": str(value)} for name, value in facts.items() if value not in (None, "")
    ]


def _interval(bounds: tuple[float, float]) -> dict[str, str]:
    return {"lowerBound": _number(bounds[0]), "upperBound": _number(bounds[1])}


def _number(value: float) -> str:
    return f"{value:.6g}"
