"""Examine the evidence beside an artifact: that it is possible, without contradictions, and as its raw data says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vitdeploy import tasks
from vitdeploy.artifact import Manifest
from vitdeploy.data.class_names import are_made_up
from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Audit, Bench, Check, Eval, Evidence, Sensitivity
from vitdeploy.graph.dialect import Numbers
from vitdeploy.graph.quantized_share import doubt_share, measure_share
from vitdeploy.graph.structure import Structure
from vitdeploy.measure.groups import score_classes
from vitdeploy.measure.operating import compare_at
from vitdeploy.measure.samples import Outcomes, count_once
from vitdeploy.recipe import AUTO, DECODER
from vitdeploy.verdict._agreement import Identity, find_contradictions, find_silent
from vitdeploy.verdict._case import EvidenceName, invalid
from vitdeploy.verdict._possible import find_impossible
from vitdeploy.verdict._recompute import list_differences, list_different_values, recompute_bench, recompute_evaluation
from vitdeploy.verdict._sites import find_audit_errors

_DIGEST = re.compile("[0-9a-f]{64}")
_MANIFEST_DATA = {"recipe", "usage", "inputs", "outputs", "labels"}
"""Parts of the manifest that are no measurement."""
_PRINTED_ONLY = {"structure", "files", "sensitivity"}
"""Parts of a printed audit that are stored elsewhere."""
_RECOMPUTED = ("eval recomputed", "as stored")
_PERCENT = 100.0 + 1e-9
NO_SAMPLES = "eval.json has no samples beside it, from which its figures follow: run vitdeploy eval again"
_COSINE = "cosine"
"""The only metric in points that can be below 0."""


@dataclass(frozen=True)
class Stored:
    """An artifact and the evidence beside it, as it was read.

    Attributes:
        manifest: the artifact's manifest.
        digest: the sha256 of the manifest.
        structure: the sites and linears of `sites.json`.
        identity: what the evidence about this artifact must agree with.
        audit: None if it is missing, as any other piece of evidence.
        bench: latencies.
        evaluation: accuracy.
        sensitivity: the loss of each linear.
        samples: the file with the outcome of every evaluated sample.
        missing: "audit", "bench" or "eval" -> the reason why it is None.
        unreadable: reasons why a file that is there cannot be read.
        recipe_digest: digest of the recipe as manifest.json has it.
        needs_images: True if the artifact's precision is made from calibration images.
        numbers: the types of the artifact's precision.
        excluded: product -> the rule by which it stays in float.
    """

    manifest: Manifest
    digest: str
    structure: Structure
    identity: Identity
    recipe_digest: str
    needs_images: bool
    numbers: Numbers
    excluded: Mapping[str, str]
    audit: Audit | None = None
    bench: Bench | None = None
    evaluation: Eval | None = None
    sensitivity: Sensitivity | None = None
    samples: bytes | None = None
    missing: dict[EvidenceName, str] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()

    @property
    def audited_on(self) -> str:
        """The hardware that fusion was read on; empty if it is not known, or the engine fuses alike on all."""
        origin = self.audit.provenance if self.audit is not None and self.identity.on_cpu else None
        return "" if origin is None else origin.hardware


@dataclass(frozen=True)
class Examined:
    """Evidence whose figures were computed from its raw data.

    Attributes:
        bench: with figures from its blocks.
        evaluation: with figures from its samples, each image counted once.
        outcomes: the samples of the evaluation, each image once; None if there are none that can be used.
        missing: as in `Stored`, and why evidence cannot be used that is there.
        faults: one invalid check for each kind of contradiction.
    """

    bench: Bench | None
    evaluation: Eval | None
    missing: dict[EvidenceName, str]
    faults: tuple[Check, ...]
    outcomes: Outcomes | None = None


def examine(stored: Stored) -> Examined:
    """Compute the figures of the evidence again, and find what is impossible or contradicts something else."""
    bench, evaluation, missing = stored.bench, stored.evaluation, dict(stored.missing)
    outcomes = None
    faults = [invalid("evidence readable", "every file", reason) for reason in stored.unreadable[:1]]
    faults += _check_possible(stored)
    if stored.manifest.stage != "artifact":  # nothing is compiled, and so nothing is proven
        return Examined(bench, evaluation, missing, tuple(faults))
    faults += _check_audit(stored)
    missing |= dict(find_silent(stored.audit, stored.bench, stored.evaluation))
    faults += find_contradictions(stored.identity, stored.audit, stored.bench, stored.evaluation, stored.sensitivity)
    if bench is not None:
        if reason := find_bench_without_samples(bench):
            missing["bench"] = reason
        else:
            bench, more = recompute_timing(bench)
            faults += more
            faults += _check_own_run(stored)
    if evaluation is not None:
        if not evaluation.samples or stored.samples is None:
            missing["eval"] = NO_SAMPLES
        else:
            evaluation, more, reason, outcomes = _recompute_accuracy(stored, evaluation, stored.samples)
            faults += more
            if reason:
                missing["eval"] = reason
    return Examined(bench, evaluation, missing, tuple(faults), outcomes)


def _check_possible(stored: Stored) -> Iterator[Check]:
    """Check the values of the manifest and of each piece of evidence, without their raw data."""
    pieces: list[Evidence | None] = [stored.audit, stored.bench, stored.evaluation, stored.sensitivity]
    problems = [find_impossible("manifest.json", stored.manifest, exclude=_MANIFEST_DATA)]
    problems += [find_impossible(piece.file, piece, exclude=_PRINTED_ONLY) for piece in pieces if piece is not None]
    problems += [_explain_manifest(stored), explain_runs(stored.bench), explain_metrics(stored.evaluation)]
    problems += [_explain_counts(stored), _explain_order(stored)]
    reasons = [problem for problem in problems if problem]
    if reasons:
        yield invalid("possible values", "all", "; ".join(reasons))


def _explain_manifest(stored: Stored) -> str | None:
    """Return what the manifest says twice, and not alike."""
    manifest = stored.manifest
    if manifest.recipe_digest != stored.recipe_digest:
        return "manifest.json: the recipe does not have the digest that the manifest names"
    if not _DIGEST.fullmatch(manifest.model.digest):
        return "manifest.json: the model has no digest"
    if manifest.trials and sum(trial.kept for trial in manifest.trials) != 1:
        return "manifest.json: not exactly one of the tried precisions was kept"
    kind, target = manifest.recipe.precision.kind, manifest.target
    requested = manifest.recipe.target.kind, target.precision if kind in (None, AUTO) else kind
    if requested != (target.kind, target.precision):
        return (
            f"manifest.json: the recipe is for {' '.join(requested)}, the artifact is {target.kind} {target.precision}"
        )
    takes_image = manifest.inputs and manifest.recipe.model.part != DECODER
    sizes = manifest.inputs[0].shape[-2:] if takes_image else ()
    if any(isinstance(d, int) and d != size for d, size in zip(sizes, manifest.preprocess.size, strict=False)):
        return "manifest.json: the first input does not have the size that preprocessing makes"
    calibration = manifest.quantized.calibration if manifest.quantized is not None else None
    if stored.needs_images and (calibration is None or calibration.synthetic):
        return f"manifest.json: {target.precision} needs calibration images, and none are recorded"
    if manifest.stage == "artifact" and (not target.backend or manifest.runs is None):
        return "manifest.json: the artifact has no engine"
    return None


def explain_runs(bench: Bench | None) -> str | None:
    """Return what a bench says about itself that cannot be."""
    if bench is None:
        return None
    if bench.valid != (not bench.doubts):
        return f"bench.json: it is {'valid beside doubts' if bench.valid else 'not valid without a doubt'}"
    if not all(run.name for run in bench.runs):
        return "bench.json: a run has no name"
    return None


def explain_metrics(evaluation: Eval | None) -> str | None:
    """Return the metrics whose figures contradict each other."""
    problems = []
    for name, metric in (evaluation.metrics if evaluation is not None else {}).items():
        sign = -1 if metric.better == "lower" else 1
        if abs(sign * (metric.reference - metric.deployed) - metric.drop) > 1e-6:
            problems.append(f"the drop of {name} is not the difference of its two sides")
        lowest = -_PERCENT if name == _COSINE else 0.0
        if metric.unit == "points" and not all(lowest <= v <= _PERCENT for v in (metric.reference, metric.deployed)):
            problems.append(f"{name} is not from {lowest:g} to 100 %")
        if metric.ci95[0] > metric.ci95[1] or metric.lower95 > metric.upper95:
            problems.append(f"the interval of {name} ends before it begins")
        if not evaluation or evaluation.samples:
            continue
        if not metric.ci95[0] <= metric.drop <= metric.ci95[1] or not metric.lower95 <= metric.drop <= metric.upper95:
            problems.append(f"the interval of {name} does not contain its drop")
    return f"eval.json: {'; '.join(problems)}" if problems else None


def _explain_counts(stored: Stored) -> str | None:
    """Return what is wrong with the numbers of samples."""
    evaluation, record = stored.evaluation, stored.manifest.quantized
    if evaluation is not None and evaluation.provenance is not None:
        answered = evaluation.n + evaluation.repeated
        readable = evaluation.available - evaluation.skipped
        if not evaluation.data_digest or not evaluation.reference:
            return "eval.json: it does not say on which data, or against which reference"
        if answered != readable and answered != evaluation.limit:
            parts = f"{evaluation.n} samples, {evaluation.repeated} repeated and {evaluation.skipped} skipped"
            return f"eval.json: {parts} are not the {evaluation.available} of the data, or its limit"
    calibration = record.calibration if record is not None else None
    if calibration is not None and calibration.samples:
        try:
            calibration.sample_digests  # noqa: B018  reads them
        except ValueError as error:
            return f"manifest.json: the digests of the calibration images cannot be read: {error}"
    return None


def _explain_order(stored: Stored) -> str | None:
    """Return how classes and flips contradict the model's labels and the counts."""
    evaluation, labels = stored.evaluation, stored.manifest.labels
    if evaluation is None:
        return None
    named = not are_made_up(labels)
    if evaluation.thumbnails and bool(evaluation.order) != tasks.find(stored.manifest.recipe.task).named_classes:
        return "eval.json: it does not say how the data names its classes"
    if bool(evaluation.class_names) != (evaluation.order == "alphabet"):
        return "eval.json: folders have names only where their order is assumed"
    if (evaluation.order == "labels" and not named) or (evaluation.order == "alphabet" and named):
        return f"eval.json: classes cannot be ordered by {evaluation.order}, as the labels of the model are"
    if len(evaluation.flipped) > evaluation.flips + evaluation.repeated:
        return f"eval.json: it shows {len(evaluation.flipped)} flips of {evaluation.flips}"
    return None


def _check_audit(stored: Stored) -> Iterator[Check]:
    audit = stored.audit
    if audit is None:
        return
    types = {**audit.layers, **audit.products}
    share = measure_share(
        stored.structure, stored.numbers, types, audit.stored, stored.excluded, audit.attention.evidence
    )
    errors = find_audit_errors(audit, stored.manifest, stored.structure)
    different = list_different_values("quantized", audit.quantized, share, source="its layers give")
    errors += [f"audit.json: {difference}" for difference in different]
    if errors:
        yield invalid("audit fits the model", "sites.json", "; ".join(errors[:3]))
    if doubts := audit.doubts or tuple(doubt_share(share)):
        yield invalid("audit without doubts", "no doubt", f"doubtful: {doubts[0]}")


def find_bench_without_samples(bench: Bench) -> str | None:
    """Return why the figures of a bench cannot be computed again: a run has a speed-up, but no samples."""
    run = next((run for run in bench.runs if not run.blocks and (run.speedup is not None or bench.valid)), None)
    if run is None:
        return None
    return f"bench.json has no samples of {run.name}, from which its figures follow: run vitdeploy bench again"


def _check_own_run(stored: Stored) -> Iterator[Check]:
    """Check that the bench has a run of this artifact."""
    bench = stored.bench
    if bench is None:
        return
    own = bench.own
    name = f"{stored.manifest.target.kind}-{stored.manifest.target.precision}"
    if own is None or own.manifest != stored.digest or own.name.partition(" (")[0] != name:
        yield invalid("bench of this artifact", "this artifact", "bench.json has no run of this artifact")
    elif own.size_bytes is not None and own.size_bytes != stored.manifest.deployed_bytes:
        reason = f"bench.json: the deployed files have {own.size_bytes:,} bytes, but the manifest lists "
        yield invalid("bench of this artifact", "this artifact", f"{reason}{stored.manifest.deployed_bytes:,}")


def recompute_timing(bench: Bench) -> tuple[Bench, list[Check]]:
    """Return a bench with figures from its samples, and a fault if the stored ones differ."""
    name, limit = "bench recomputed", "as stored"
    try:
        fresh = recompute_bench(bench)
    except MeasureError as error:
        return bench, [invalid(name, limit, f"bench.json: {error.message}")]
    differences = list_differences(bench, fresh)
    if bench.valid and not fresh.valid:
        differences.append(f"it is valid, but its samples are in doubt: {fresh.doubts[0]}")
    return fresh, [invalid(name, limit, f"bench.json: {'; '.join(differences[:2])}")] if differences else []


def _recompute_accuracy(stored: Stored, evaluation: Eval, raw: bytes) -> tuple[Eval, list[Check], str, Outcomes | None]:
    """Return the recomputed evaluation, faults, why accuracy cannot be judged although there is none, and samples."""
    try:
        fresh, outcomes = recompute_evaluation(stored.manifest.recipe.task, evaluation, raw, stored.manifest.labels)
    except MeasureError as error:
        return evaluation, [invalid(*_RECOMPUTED, error.message)], error.message, None
    details = _find_other_details(stored, evaluation, count_once(outcomes))
    faults = compare_figures(evaluation, fresh, outcomes, details)
    calibrated = explain_calibrated(stored.manifest, evaluation.data_digest, outcomes)
    return fresh, faults, calibrated or "", count_once(outcomes)


def compare_figures(evaluation: Eval, fresh: Eval, outcomes: Outcomes, details: Sequence[str] = ()) -> list[Check]:
    """Return a fault if stored figures differ from those of the samples, or if samples show an image twice."""
    differences = [*list_differences(evaluation, fresh), *details]
    count, distinct = len(outcomes.digest), len(set(outcomes.digest.tolist()))
    if distinct < count:
        differences.insert(0, f"{count:,} samples show only {distinct:,} images")
    return [invalid(*_RECOMPUTED, f"eval.json: {'; '.join(differences[:2])}")] if differences else []


def _find_other_details(stored: Stored, evaluation: Eval, outcomes: Outcomes) -> list[str]:
    """Return how the accuracy of classes, and that at a threshold, differ from what the samples give."""
    task = tasks.find(stored.manifest.recipe.task)
    differences = []
    if evaluation.thumbnails:  # written by a vitdeploy that keeps these
        classes = score_classes(task, outcomes, evaluation.class_names or stored.manifest.labels)
        differences += list_different_values("classes", evaluation.classes, classes)
    if (point := evaluation.operating_point) is not None:
        fresh = compare_at(task, outcomes, point.threshold)
        differences += list_different_values("operating_point", point, fresh)
    return differences


def explain_calibrated(manifest: Manifest, data_digest: str, outcomes: Outcomes) -> str | None:
    """Return how many of the evaluated images were used for calibration, in words; None if none was.

    An older manifest has only the digest of all its calibration data.
    """
    calibration = manifest.quantized.calibration if manifest.quantized is not None else None
    if calibration is None or calibration.synthetic:
        return None
    advice = "evaluate on other images"
    if not calibration.samples:
        same = bool(data_digest) and data_digest == calibration.digest
        return f"the evaluation data is the calibration data: {advice}" if same else None
    try:
        seen = calibration.sample_digests
    except ValueError:  # named as an impossible value
        return "it is not known which images were used for calibration"
    count = len(set(seen).intersection(outcomes.digest.tolist()))
    if not count:
        return None
    return f"{count:,} of the {len(outcomes.digest):,} evaluated images are calibration images: {advice}"
