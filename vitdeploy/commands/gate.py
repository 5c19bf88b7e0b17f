"""`vitdeploy gate`: read the stored evidence, judge it, and write the verdict for people and CI systems."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vitdeploy import artifact as artifacts
from vitdeploy import environment, precision, targets, tasks
from vitdeploy.artifact import Artifact, EvidenceT
from vitdeploy.artifact.layout import FLIPS, RELEASE_SAMPLES, SAMPLES, SITES
from vitdeploy.commands.bench.costs import measure_startup
from vitdeploy.commands.evaluate.release import compare_with_release
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import MeasureError, TargetUnavailable, UsageError, VitdeployError
from vitdeploy.evidence import Audit, Bench, Eval, Gate, OperatingPoint, Release, Sensitivity
from vitdeploy.frozen import parse, replace
from vitdeploy.graph import structure as structures
from vitdeploy.measure import baseline as baselines
from vitdeploy.measure import latency
from vitdeploy.measure.operating import compare_at
from vitdeploy.measure.samples import MAX_FILE_BYTES
from vitdeploy.progress import Progress
from vitdeploy.recipe import GateSpec
from vitdeploy.render import github, junit, markdown
from vitdeploy.render.summary import summarize
from vitdeploy.runtime.artifact_session import count_threads, feed, list_excluded, make_shared_images, open_session
from vitdeploy.verdict import (
    Before,
    Case,
    EvidenceName,
    Examined,
    Identity,
    Stored,
    examine,
    explain_incomparable,
    judge,
    recompute_bench,
    recompute_release,
)


@dataclass(frozen=True)
class Judged:
    """The evidence beside an artifact: as it was stored, and as its raw data gives it."""

    stored: Stored
    examined: Examined


def gate(
    artifact: Artifact,
    limits: Mapping[str, float | None],
    progress: Progress,
    *,
    baseline: Path | None = None,
    data: str | None = None,
    groups: Path | None = None,
    against: Path | None = None,
    save_baseline: Path | None = None,
    junit_file: Path | None = None,
    markdown_file: Path | None = None,
) -> Gate:
    """Judge an artifact by its stored evidence.

    A baseline folder is timed in turns with this artifact, here and now, unless the two cannot be compared or one of
    them cannot run here. With a baseline file, stored figures are compared. With `data`, the baseline folder may have
    other weights: both answer the same samples, here and now.

    Args:
        artifact: the artifact or bundle.
        limits: by the names of `GateSpec`; they override the recipe's unless they are None.
        progress: gets the steps and warnings.
        baseline: the folder of an earlier artifact, or a file that `save_baseline` has written.
        data: DATA that the baseline folder and this artifact answer, to compare their accuracy.
        groups: a file that names groups of images or classes, to compare both in each.
        against: the folder of the artifact that the bench must have timed this one against.
        save_baseline: a file to write the evidence to.
        junit_file: a file to write JUnit XML to.
        markdown_file: a file to write a table to.

    Raises:
        ArtifactError: the baseline is damaged.
        RecipeError: a limit is not valid.
        MeasureError: the measurement is doubtful, so it cannot be saved as a baseline. The verdict is still written.
    """
    if baseline is not None and save_baseline is not None and baseline.absolute() == save_baseline.absolute():
        raise UsageError(
            f"--baseline and --save-baseline are both {baseline}: the baseline would be overwritten",
            fix="Save to another file, and rename it after the verdict.",
        )
    if data is not None and (baseline is None or not baseline.is_dir()):
        raise UsageError(
            "--data needs the folder of an earlier artifact to compare with", fix="Give --baseline DIR with it."
        )
    if groups is not None and data is None:
        raise UsageError("--groups needs the data that it is about", fix="Give --data DATA and --baseline DIR with it.")
    opponent = None if against is None else _load_opponent(against, artifact)
    recipe_limits = artifact.manifest.recipe.gate.model_dump()
    overrides: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
    spec = parse(GateSpec, {**recipe_limits, **overrides}, where="limits")
    evidence = read_evidence(artifact)
    if baseline is not None and data is not None:
        before: Before | None = _compare_releases(baseline, artifact, data, groups, spec, progress)
    else:
        earlier = evidence.examined.evaluation
        before = None if baseline is None else _read_before(baseline, artifact, earlier, progress)
    case = _make_case(artifact, evidence, spec)
    if opponent is not None:
        case = dataclasses.replace(case, against=str(against), against_artifact=True, against_digest=opponent.digest)
    verdict = judge(case, spec, before)
    verdict = artifact.write_evidence(replace(verdict, digest=artifact.evidence_digest()))
    if junit_file is not None:
        junit.write(verdict, junit_file)
    audit, timing, evaluation = evidence.stored.audit, evidence.examined.bench, evidence.examined.evaluation
    summary = summarize(audit, timing, evaluation, verdict, random_weights=artifact.random_weights)
    manifest = artifact.manifest
    made_for = f"{manifest.target.kind} {manifest.target.precision}"
    about = (manifest.model.spec, made_for, artifact.path.resolve().name)
    if markdown_file is not None:
        markdown.write(verdict, markdown_file, summary, about=about)
    github.publish(verdict, summary, sys.stderr, about=about)
    if save_baseline is not None:
        baselines.write(save_baseline, _make_baseline(artifact, evidence))
    return verdict


def judge_again(artifact: Artifact, verdict: Gate) -> Gate:
    """Judge the evidence that lies beside an artifact now, by the limits and the baseline of a stored verdict."""
    spec = parse(GateSpec, verdict.limits, where="limits in gate.json")
    before = None
    if verdict.baseline is not None or verdict.timing is not None or verdict.untimed or verdict.release is not None:
        earlier = None if verdict.baseline is None else baselines.Baseline.model_validate(verdict.baseline)
        before = Before(earlier, *_time_again(verdict), *_compare_again(artifact, verdict.release))
    fresh = judge(_make_case(artifact, read_evidence(artifact), spec), spec, before)
    return replace(fresh, digest=artifact.evidence_digest(), manifest=artifact.digest)


def _time_again(verdict: Gate) -> tuple[Bench | None, str]:
    """Return the timing against a baseline folder with figures from its samples, and why there is none."""
    if verdict.timing is None:
        return None, verdict.untimed
    try:
        return recompute_bench(verdict.timing), verdict.untimed
    except MeasureError as error:
        return None, f"the timing in gate.json is refused: {error.message}"


def _compare_again(artifact: Artifact, release: Release | None) -> tuple[Release | None, str]:
    """Return a comparison of two releases with figures from its samples, and why it cannot be used."""
    if release is None:
        return None, ""
    raw, reason = artifact.read_raw(RELEASE_SAMPLES, MAX_FILE_BYTES)
    if raw is None:
        return release, f"{reason}: compare the two again"
    try:
        fresh = recompute_release(artifact.manifest.recipe.task, release, raw, artifact.manifest.labels)
    except MeasureError as error:
        return release, error.message
    return fresh, ""


def _load_opponent(path: Path, artifact: Artifact) -> Artifact:
    """Load the artifact that a bench was timed against.

    Raises:
        UsageError: it is an artifact of another model.
    """
    opponent = artifacts.load(path)
    if opponent.manifest.model.digest != artifact.manifest.model.digest:
        raise UsageError(
            f"{path} is an artifact of another model, or of other weights: {opponent.manifest.model.spec}",
            fix="Give an artifact of the same model; --baseline DIR with --data compares two models.",
        )
    return opponent


def _compare_releases(
    baseline: Path, artifact: Artifact, data: str, groups: Path | None, limits: GateSpec, progress: Progress
) -> Before:
    """Let the earlier artifact and this one answer the same samples; time them in turns if slow-down has a limit."""
    earlier = artifacts.load(baseline)
    release = compare_with_release(earlier, artifact, data, progress, groups=groups)
    for doubt in release.doubts:
        progress.warn(doubt)
    if limits.max_slowdown_pct is None:
        return Before(release=release)
    try:
        return Before(release=release, interleaved=_time_in_turns(earlier, artifact, progress))
    except (TargetUnavailable, UsageError) as error:
        return Before(release=release, untimed=error.message)


def _make_case(artifact: Artifact, evidence: Judged, limits: GateSpec) -> Case:
    recipe, examined = artifact.manifest.recipe, evidence.examined
    return Case(
        evidence.stored.audit,
        examined.bench,
        examined.evaluation,
        missing=examined.missing,
        faults=examined.faults,
        stage=artifact.manifest.stage,
        manifest=artifact.digest,
        machine=environment.host().machine,
        model_digest=artifact.manifest.model.digest,
        recipe=baselines.decisive_keys(recipe),
        size_bytes=artifact.manifest.deployed_bytes,
        random_weights=artifact.random_weights,
        against=recipe.bench.against,
        against_artifact=Path(recipe.bench.against).is_absolute(),
        operating_point=_find_operating_point(artifact, examined, limits),
    )


def _find_operating_point(artifact: Artifact, examined: Examined, limits: GateSpec) -> OperatingPoint | str | None:
    """Return what both sides find at the threshold of the limits, from the samples; or why that is not known."""
    if limits.at_threshold is None or examined.outcomes is None:
        return None
    try:
        return compare_at(tasks.find(artifact.manifest.recipe.task), examined.outcomes, limits.at_threshold)
    except MeasureError as error:
        return error.message


def read_evidence(artifact: Artifact) -> Judged:
    """Read the evidence beside an artifact, and compute its figures from its raw data."""
    missing: dict[EvidenceName, str] = {}
    unreadable: list[str] = []
    audit: Audit | None = None
    try:
        audit = inspect(artifact)
    except VitdeployError as error:
        missing["audit"] = error.message

    def read(kind: type[EvidenceT]) -> tuple[EvidenceT | None, str]:
        evidence, reason = artifact.read_evidence(kind)
        if "cannot be read" in reason:
            unreadable.append(reason)
        return evidence, reason

    bench, reason = read(Bench)
    if bench is None:
        missing["bench"] = f"{reason}: run vitdeploy bench {artifact.path}"
    evaluation, reason = read(Eval)
    if evaluation is None:
        missing["eval"] = f"{reason}: run vitdeploy eval {artifact.path}"
    samples = None
    if evaluation is not None and evaluation.samples:
        samples, reason = artifact.read_raw(SAMPLES, MAX_FILE_BYTES)
    if evaluation is not None and evaluation.thumbnails:
        pictures, _ = artifact.read_raw(FLIPS, MAX_FILE_BYTES)
        if hashlib.sha256(pictures or b"").hexdigest() != evaluation.thumbnails:
            unreadable.append(f"{FLIPS} is not the one that eval.json names: run vitdeploy eval {artifact.path}")
    kind = precision.kind_of(artifact.manifest.target.precision)
    stored = Stored(
        manifest=artifact.manifest,
        digest=artifact.digest,
        structure=structures.load(artifact.file(SITES)),
        identity=_identify(artifact),
        recipe_digest=artifact.recipe_digest,
        needs_images=kind.needs_images,
        numbers=kind.numbers,
        excluded=list_excluded(artifact.manifest.placement, artifact.manifest.quantized),
        audit=audit,
        bench=bench,
        evaluation=evaluation,
        sensitivity=read(Sensitivity)[0],
        samples=samples,
        missing=missing,
        unreadable=tuple(unreadable),
    )
    return Judged(stored, examine(stored))


def _identify(artifact: Artifact) -> Identity:
    """Return what evidence about this artifact must agree with. Only some engines belong to one device."""
    manifest = artifact.manifest
    kind, record = targets.kind_of(manifest.target.kind), manifest.target
    bound = kind.built_on_device and record.host is not None
    return Identity(
        recipe=manifest.recipe_digest,
        on_cpu=kind.runs_on == "cpu",
        engine=record.backend or "" if bound else "",
        hardware=record.host.hardware if bound and record.host is not None else "",
    )


def _read_before(path: Path, artifact: Artifact, evaluation: Eval | None, progress: Progress) -> Before:
    """Read a baseline file; or read a baseline folder, and time it in turns with the artifact."""
    if not path.is_dir():
        return Before(baselines.read(path))
    earlier = artifacts.load(path)
    evidence = read_evidence(earlier)
    if evidence.examined.faults:
        fault = evidence.examined.faults[0]
        return Before(untimed=f"the evidence of {path} is refused: {fault.name}: {fault.why}")
    bench = evidence.examined.bench
    if bench is not None and not bench.valid:  # a doubtful measurement is not used
        evidence = dataclasses.replace(evidence, examined=dataclasses.replace(evidence.examined, bench=None))
    baseline = _make_baseline(earlier, evidence)
    recipe = artifact.manifest.recipe
    for folder in (earlier, artifact):
        if folder.manifest.stage != "artifact":
            return Before(baseline, untimed=f"{folder.path} is only a bundle: on the device run vitdeploy compile")
    data = evaluation.data_digest if evaluation is not None else ""
    if reason := explain_incomparable(baseline, artifact.manifest.model.digest, baselines.decisive_keys(recipe), data):
        return Before(baseline, untimed=reason)
    try:
        return Before(baseline, interleaved=_time_in_turns(earlier, artifact, progress))
    except (TargetUnavailable, UsageError) as error:
        return Before(baseline, untimed=error.message)


def _time_in_turns(earlier: Artifact, artifact: Artifact, progress: Progress) -> Bench:
    """Time both artifacts in turns, the earlier one as the reference, and measure the start-up of both."""
    recipe = artifact.manifest.recipe
    threads, batch = count_threads(recipe), recipe.target.batch.opt
    images = make_shared_images([earlier, artifact], batch)
    bench = latency.measure_reopened(
        [partial(open_session, earlier, threads), partial(open_session, artifact, threads)],
        [feed(earlier, images), feed(artifact, images)],
        batch=batch,
        seconds=recipe.bench.seconds,
        progress=progress,
    )
    with progress.step("Start both"):
        startups = [measure_startup(side, threads, batch, progress) for side in (earlier, artifact)]
    reference, run = bench.runs
    runs = (
        replace(reference, role="reference", manifest=earlier.digest, startup=startups[0]),
        replace(run, role="artifact", manifest=artifact.digest, startup=startups[1]),
    )
    return replace(bench, runs=runs, machine=environment.host().machine, manifest=artifact.digest)


def _make_baseline(artifact: Artifact, evidence: Judged) -> baselines.Baseline:
    audit, examined = evidence.stored.audit, evidence.examined
    if audit is None:
        raise UsageError(f"{artifact.path} has no audit", fix=f"Run vitdeploy inspect {artifact.path}.")
    if examined.faults:
        fault = examined.faults[0]
        message = f"{artifact.path} makes no baseline: {fault.name}: {fault.why}"
        raise MeasureError(message, fix=f"Make its evidence again, then run vitdeploy gate {artifact.path}.")
    bench = examined.bench
    if bench is not None and bench.valid and "bench" in examined.missing:
        bench = None
    return baselines.make(
        audit,
        bench,
        None if "eval" in examined.missing else examined.evaluation,
        machine=bench.machine if bench is not None and bench.machine else environment.host().machine,
        model_digest=artifact.manifest.model.digest,
        recipe_digest=artifact.manifest.recipe_digest,
        recipe=baselines.decisive_keys(artifact.manifest.recipe),
        size_bytes=artifact.manifest.deployed_bytes,
    )
