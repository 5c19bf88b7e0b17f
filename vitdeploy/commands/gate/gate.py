"""Read the stored evidence, judge it, and write the verdict for people and CI systems."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import RELEASE_SAMPLES
from vitdeploy.commands.gate.before import compare_answers, make_baseline, read_before
from vitdeploy.commands.gate.evidence import make_case, read_evidence
from vitdeploy.commands.gate.signed import verify_again, verify_signature
from vitdeploy.commands.log.describe import describe_artifact
from vitdeploy.commands.log.entry import now
from vitdeploy.commands.log.logs import NO_LOGS, Logs
from vitdeploy.errors import MeasureError, UsageError
from vitdeploy.evidence import Bench, Gate, Release
from vitdeploy.frozen import parse, replace
from vitdeploy.measure import baseline as baselines
from vitdeploy.measure.samples import MAX_FILE_BYTES
from vitdeploy.progress import Progress
from vitdeploy.recipe import GateSpec
from vitdeploy.render import github, junit, markdown
from vitdeploy.render.summary import summarize
from vitdeploy.verdict import (
    Before,
    Case,
    judge,
    recompute_bench,
    recompute_release,
)


def gate(
    artifact: Artifact,
    limits: Mapping[str, float | str | None],
    progress: Progress,
    *,
    baseline: Path | None = None,
    data: str | None = None,
    groups: Path | None = None,
    against: Path | None = None,
    save_baseline: Path | None = None,
    junit_file: Path | None = None,
    markdown_file: Path | None = None,
    before_signing: bool = False,
    logs: Logs = NO_LOGS,
) -> Gate:
    """Judge an artifact by its stored evidence.

    A baseline folder is timed in turns with this artifact, here and now, unless the two cannot be compared or one of
    them cannot run here. With a baseline file, stored figures are compared. With `data`, the baseline folder may have
    other weights: both answer the same samples, here and now.

    The verdict is stored as gate.json. With `require_signed` it is not, unless the artifact has a folder for evidence:
    gate.json is signed too.

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
        before_signing: the verdict is to be signed: `require_signed` of the recipe is left out.
        logs: where the verdict is logged, with the figures that it is about.

    Raises:
        UsageError: the file of `require_signed` is no public key.
        ArtifactError: the baseline is damaged.
        RecipeError: a limit is not valid.
        MeasureError: the measurement is doubtful, so it cannot be saved as a baseline. The verdict is still written.
    """
    started = now()
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
    if before_signing:
        recipe_limits["require_signed"] = None
    overrides: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
    spec = parse(GateSpec, {**recipe_limits, **overrides}, where="limits")
    signature = verify_signature(artifact, spec.require_signed)
    evidence = read_evidence(artifact, store=signature is None)
    if baseline is not None and data is not None:
        before: Before | None = compare_answers(baseline, artifact, data, groups, spec, progress)
    else:
        before = None if baseline is None else read_before(baseline, artifact, evidence.examined.evaluation, progress)
    case = make_case(artifact, evidence, spec, signature)
    if opponent is not None:
        case = _name_opponent(case, str(against), opponent.digest)
    verdict = judge(case, spec, before)
    verdict = replace(verdict, digest=artifact.evidence_digest())
    if signature is None or artifact.evidence_folder is not None:  # else it would break the signature that it asks for
        verdict = artifact.write_evidence(verdict)
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
    used = (evidence.evaluation, audit, evidence.bench)
    entry = describe_artifact("gate", artifact, *used, verdict, started, faults=evidence.examined.faults)
    logs.write(entry, logs.list_files(artifact))
    if save_baseline is not None:
        baselines.write(save_baseline, make_baseline(artifact, evidence))
    return verdict


def judge_again(artifact: Artifact, verdict: Gate) -> Gate:
    """Judge the evidence that lies beside an artifact now, by the limits and the baseline of a stored verdict.

    Nothing is written.

    Raises:
        RecipeError: its limits are none that this version knows.
        MeasureError: its baseline is not one.
    """
    spec = parse(GateSpec, verdict.limits, where="limits in gate.json")
    before = None
    if verdict.baseline is not None or verdict.timing is not None or verdict.untimed or verdict.release is not None:
        baseline = None if verdict.baseline is None else baselines.parse_stored(verdict.baseline)
        before = Before(baseline, *_time_again(verdict), *_compare_again(artifact, verdict.release))
    signature = verify_again(artifact, spec.require_signed)
    case = make_case(artifact, read_evidence(artifact, store=False), spec, signature)
    if verdict.against_digest:
        case = _name_opponent(case, verdict.against, verdict.against_digest)
    fresh = judge(case, spec, before)
    return replace(fresh, digest=artifact.evidence_digest(), manifest=artifact.digest)


def _name_opponent(case: Case, folder: str, digest: str) -> Case:
    """Return a case whose bench must have timed the artifact against another one, by the digest of its manifest."""
    return dataclasses.replace(case, against=folder, against_artifact=True, against_digest=digest)


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
