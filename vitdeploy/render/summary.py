"""The summary: latency, accuracy, fusion and verdict of FP32 and the artifact, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from vitdeploy.evidence import Audit, Bench, Eval, Gate, Metric, Run
from vitdeploy.frozen import replace
from vitdeploy.render import numbers
from vitdeploy.render.numbers import NOTHING, three_digits


@dataclass(frozen=True)
class Row:
    """One row of the table: a label and both sides, as text."""

    label: str
    reference: str
    artifact: str


@dataclass(frozen=True)
class Summary:
    """The table: the headers of both sides, the rows, and notes."""

    reference: str
    artifact: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def summarize(
    audit: Audit | None,
    bench: Bench | None,
    evaluation: Eval | None,
    gate: Gate | None,
    *,
    random_weights: bool = False,
) -> Summary:
    """Summarize an artifact. Missing evidence gives a row that says so; no row is left out."""
    reference, deployed = (bench.reference, bench.own) if bench else (None, None)
    rows = (
        *_latency(reference, deployed),
        *_accuracy(evaluation, reference),
        Row("attention fused (sites)", NOTHING, numbers.fused(audit.attention) if audit else "not audited"),
        Row("verdict", NOTHING, gate.verdict.upper() if gate else "not judged"),
    )
    name = f"{audit.target} {audit.precision}" if audit else deployed.name if deployed else "artifact"
    reference_name = reference.name if reference else evaluation.reference if evaluation else ""
    return Summary(
        reference=numbers.side(reference_name or "pytorch-fp32"),
        artifact=name,
        rows=rows,
        notes=tuple(_notes(bench, evaluation, gate, random_weights=random_weights)),
    )


def _latency(reference: Run | None, deployed: Run | None) -> list[Row]:
    if deployed is None:
        return [Row("latency (ms)", "not measured", "not measured")]
    rows = []
    for label, field in (("p50", "p50_ms"), ("p90", "p90_ms"), ("p99", "p99_ms")):
        side = three_digits(getattr(reference, field)) if reference else NOTHING
        rows.append(Row(f"latency {label} (ms)", side, three_digits(getattr(deployed, field))))
    side = three_digits(reference.throughput_ips) if reference else NOTHING
    rows.append(Row("throughput (images/s)", side, three_digits(deployed.throughput_ips)))
    rows.append(Row("speed-up, 95 % interval (×)", "1" if reference else NOTHING, numbers.speedup(deployed.speedup)))
    return rows


def _accuracy(evaluation: Eval | None, timed: Run | None) -> list[Row]:
    """Return the rows of each metric. They name the reference if it is another one than was timed."""
    if evaluation is None or not evaluation.metrics:
        return [Row("accuracy", "not evaluated", "not evaluated")]
    rows = []
    other = timed is not None and evaluation.reference and timed.name != evaluation.reference
    whose = f" ({numbers.side(evaluation.reference)})" if other else ""
    for name, metric in evaluation.metrics.items():
        unit = "%" if metric.unit == "points" else metric.unit
        sides = f"{metric.reference:.2f}{whose}", f"{metric.deployed:.2f}"
        rows.append(Row(f"{numbers.metric(name)} ({unit})", *sides))
        rows.append(Row(f"{numbers.metric(name)} drop, 95 % interval ({metric.unit})", NOTHING, numbers.drop(metric)))
    rows.append(Row(f"{numbers.agreement_name(evaluation.task)} (%)", NOTHING, f"{100 * evaluation.agreement:.2f}"))
    return rows


def _notes(bench: Bench | None, evaluation: Eval | None, gate: Gate | None, *, random_weights: bool) -> list[str]:
    notes = ["random weights: accuracy means nothing"] if random_weights else []
    if bench is not None and bench.own is not None:
        batch = numbers.batches(replace(bench, runs=(bench.own,)))  # a sweep shows its first size
        notes += [f"latencies at {batch}"] if batch != "batch 1" else []
    if evaluation is not None and evaluation.metrics:
        notes.append(_bound(evaluation, next(iter(evaluation.metrics.values()))))
    reasons = [f"{check.name}: {check.why}" for check in gate.checks if check.status != "pass"] if gate else []
    doubts = bench.doubts if bench else ()
    notes += [f"doubt: {doubt}" for doubt in doubts if not any(doubt in reason for reason in reasons)]
    return notes + reasons


def _bound(evaluation: Eval, metric: Metric) -> str:
    data = f" of {evaluation.data}" if evaluation.data else ""
    bound = f"the drop is at most {metric.upper95:.2f} {metric.unit} with 95 % confidence"
    return f"on {evaluation.n:,} samples{data}, {bound} (p = {evaluation.p_value:.2g}, {evaluation.test})"
