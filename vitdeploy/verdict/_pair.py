"""Examine the evidence about a pair, the parts of a family in turn, as that about one artifact is examined."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vitdeploy.artifact import Manifest
from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Audit, Bench, Check, Eval
from vitdeploy.measure.samples import count_once
from vitdeploy.recipe import TaskSpec
from vitdeploy.verdict._agreement import Identity, find_contradictions, find_silent
from vitdeploy.verdict._case import EvidenceName, invalid
from vitdeploy.verdict._examine import (
    NO_SAMPLES,
    Examined,
    compare_figures,
    explain_calibrated,
    explain_metrics,
    explain_runs,
    find_bench_without_samples,
    recompute_timing,
)
from vitdeploy.verdict._possible import find_impossible
from vitdeploy.verdict._recompute import recompute_evaluation


@dataclass(frozen=True)
class StoredPair:
    """A family and the evidence about its parts in turn, as it was read.

    Attributes:
        parts: the manifests of the parts.
        digest: the sha256 of family.json.
        task: the task that the pair is evaluated for.
        identity: what the evidence about the pair must agree with: the facts of the encoder.
        audit: of the encoder, which was made on the machine that the pair must be measured on.
        bench: latencies of the pair.
        evaluation: accuracy of the pair.
        samples: the file with the outcome of every evaluated sample.
        missing: "bench" or "eval" -> the reason why it cannot be used.
        unreadable: reasons why a file that is there cannot be read.
    """

    parts: tuple[Manifest, ...]
    digest: str
    task: TaskSpec
    identity: Identity
    audit: Audit | None
    bench: Bench | None
    evaluation: Eval | None
    samples: bytes | None
    missing: dict[EvidenceName, str] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()


def examine_pair(stored: StoredPair) -> Examined:
    """Compute the figures of the pair again, and find what is impossible or contradicts something else."""
    bench, evaluation, missing = stored.bench, stored.evaluation, dict(stored.missing)
    outcomes = None
    faults = [invalid("evidence readable", "every file", reason) for reason in stored.unreadable[:1]]
    faults += _check_possible(stored)
    if any(part.stage != "artifact" for part in stored.parts):
        return Examined(bench, evaluation, missing, tuple(faults))
    missing |= {name: reason for name, reason in find_silent(stored.audit, bench, evaluation) if name != "audit"}
    faults += find_contradictions(stored.identity, stored.audit, bench, evaluation)
    if bench is not None:
        if reason := find_bench_without_samples(bench):
            missing["bench"] = reason
        else:
            bench, more = recompute_timing(bench)
            faults += more
            if bench.own is None or bench.own.manifest != stored.digest:
                faults.append(invalid("bench of this family", "this family", "bench.json has no run of this family"))
    if evaluation is not None and stored.samples is None:
        missing.setdefault("eval", NO_SAMPLES)
    elif evaluation is not None and stored.samples is not None:
        try:
            fresh, outcomes = recompute_evaluation(stored.task, evaluation, stored.samples)
        except MeasureError as error:
            missing["eval"] = error.message
            faults.append(invalid("eval recomputed", "as stored", error.message))
        else:
            faults += compare_figures(evaluation, fresh, outcomes)
            evaluation = fresh
            for part in stored.parts:
                if calibrated := explain_calibrated(part, evaluation.data_digest, outcomes):
                    missing["eval"] = calibrated
    return Examined(bench, evaluation, missing, tuple(faults), None if outcomes is None else count_once(outcomes))


def _check_possible(stored: StoredPair) -> Iterator[Check]:
    """Check the values of each piece of evidence, without its raw data."""
    pieces = [piece for piece in (stored.bench, stored.evaluation) if piece is not None]
    problems = [find_impossible(piece.file, piece) for piece in pieces]
    problems += [explain_runs(stored.bench), explain_metrics(stored.evaluation), _explain_counts(stored.evaluation)]
    if reasons := [problem for problem in problems if problem]:
        yield invalid("possible values", "all", "; ".join(reasons))


def _explain_counts(evaluation: Eval | None) -> str | None:
    """Return what is wrong with the number of samples. Images without an object are none."""
    if evaluation is None or evaluation.provenance is None:
        return None
    if not evaluation.data_digest or not evaluation.reference:
        return "eval.json: it does not say on which data, or against which reference"
    answered, readable = evaluation.n + evaluation.repeated, evaluation.available - evaluation.skipped
    if answered > readable:
        return f"eval.json: it has {answered} samples, and the data has {readable} images that can be read"
    return None
