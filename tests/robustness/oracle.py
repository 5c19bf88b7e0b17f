"""What evidence cannot be, decided from its JSON alone and without vitdeploy's own judge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

_PRECISIONS = ("int8", "fp8", "fp16", "bf16", "fp32", "other")
_TOLERANCE = 1e-3  # of a figure, against the same figure from raw samples; the file has full precision


def find_contradictions(evidence: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """Return what is impossible in the evidence that these limits are about.

    Args:
        evidence: "audit", "bench" and "eval": the parsed JSON, or None where it does not parse.
        limits: the limits of the gate.
    """
    needed = {
        "audit": "min_fused_pct" in limits,
        "bench": "min_speedup" in limits,
        "eval": "max_drop_pp" in limits,
    }
    checks = {"audit": _check_audit, "bench": _check_bench, "eval": _check_eval}
    problems = []
    for name, check in checks.items():
        if needed[name]:
            document = evidence[name]
            if not isinstance(document, dict):
                problems.append(f"{name} is not an object")
                continue
            try:
                problems += [f"{name}: {problem}" for problem in check(document)]
            except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
                problems.append(f"{name} has another form: {type(error).__name__} {error}")
    return problems


def _check_audit(audit: dict[str, Any]) -> Iterator[str]:
    attention = audit["attention"]
    sites, fused, unfused = attention["sites"], attention["fused"], attention.get("unfused", [])
    if not 0 <= fused <= sites:
        yield f"{fused} of {sites} fused"
    if len(unfused) != sites - fused:
        yield f"{len(unfused)} sites are listed as unfused, of {sites} with {fused} fused"
    norms = audit["layernorm"]
    if not 0 <= norms["fused"] <= norms["sites"]:
        yield f"{norms['fused']} of {norms['sites']} norms fused"
    if any(audit["linears"].get(name, 0) < 0 for name in _PRECISIONS):
        yield "a negative number of linears"
    if audit.get("doubts"):
        yield "it has doubts"


def _check_bench(bench: dict[str, Any]) -> Iterator[str]:
    if bench["valid"] is not True or bench["doubts"]:
        yield "it is not valid, or has doubts"
    runs = bench["runs"]
    for run in runs:
        yield from _check_run(run)
    (reference, *_), (own, *_) = (
        [run for run in runs if run.get("role") == role] for role in ("reference", "artifact")
    )
    ratio, (low, high) = own["speedup"]["ratio"], own["speedup"]["ci95"]
    if not 0 < low <= ratio <= high < math.inf:
        yield f"the speed-up {ratio} is not within {low} and {high}"
    middles = [[median(block) for block in run["blocks"]] for run in (reference, own)]
    seen = median(a / b for a, b in zip(*middles, strict=True))
    if not 0.5 * seen < ratio < 2 * seen:
        yield f"a speed-up of {ratio}, where the samples give about {seen:.3g}"


def _check_run(run: dict[str, Any]) -> Iterator[str]:
    samples = sorted(sample for block in run["blocks"] for sample in block)
    if run["samples"] != len(samples):
        yield f"{run['name']}: {run['samples']} samples, but {len(samples)} are stored"
    if not all(0 < sample < math.inf for sample in samples):
        yield f"{run['name']}: a latency that is none"
    if not math.isclose(run["p50_ms"], median(samples), rel_tol=0.05):
        yield f"{run['name']}: p50 {run['p50_ms']}, but the samples have {median(samples)}"
    if not run["p50_ms"] <= run["p90_ms"] <= run["p99_ms"] <= samples[-1] * (1 + _TOLERANCE):
        yield f"{run['name']}: percentiles that are not in order"
    if run["batch"] < 1 or run.get("finite", True) is not True:
        yield f"{run['name']}: batch {run['batch']}, finite {run.get('finite')}"


def _check_eval(evaluation: dict[str, Any]) -> Iterator[str]:
    n, nonfinite = evaluation["n"], evaluation.get("nonfinite", 0)
    if evaluation.get("doubts"):
        yield "it has doubts"
    if n < 1 or not 0 <= evaluation["flips"] <= n or not 0 <= nonfinite <= n:
        yield f"{evaluation['flips']} flips and {nonfinite} not finite of {n}"
    if not 0 <= evaluation["agreement"] <= 1 or not 0 <= evaluation["p_value"] <= 1:
        yield f"agreement {evaluation['agreement']}, p {evaluation['p_value']}"
    if evaluation["flips"] and evaluation["agreement"] == 1:
        yield "answers that differ, with an agreement of 1"
    for name, metric in evaluation["metrics"].items():
        sign = 1 if metric.get("better", "higher") == "higher" else -1
        drop = sign * (metric["reference"] - metric["deployed"])
        if not math.isclose(metric["drop"], drop, rel_tol=_TOLERANCE, abs_tol=1e-6):
            yield f"{name}: a drop of {metric['drop']} from {metric['reference']} to {metric['deployed']}"
        if not metric["lower95"] <= metric["drop"] <= metric["upper95"]:
            yield f"{name}: {metric['drop']} is not within {metric['lower95']} and {metric['upper95']}"
        if not metric["ci95"][0] <= metric["drop"] <= metric["ci95"][1]:
            yield f"{name}: {metric['drop']} is not within {metric['ci95']}"
        if metric["unit"] == "points" and not (0 <= metric["reference"] <= 100 and 0 <= metric["deployed"] <= 100):
            yield f"{name}: {metric['reference']} and {metric['deployed']} percent"
