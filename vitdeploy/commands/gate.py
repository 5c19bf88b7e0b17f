"""Collect the stored evidence, judge it, and write the verdict where others look for it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vitdeploy import artifact as artifacts
from vitdeploy import environment
from vitdeploy.artifact import Artifact
from vitdeploy.commands.bench.costs import started
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import TargetUnavailable, UsageError, VitdeployError
from vitdeploy.evidence import Audit, Bench, Eval, Gate
from vitdeploy.measure import baseline as baselines
from vitdeploy.measure import latency
from vitdeploy.progress import Progress
from vitdeploy.recipe import GateSpec, parse
from vitdeploy.render import github, junit, markdown
from vitdeploy.render.summary import summarize
from vitdeploy.runtime.artifact_session import feeds, open_session, same_images, threads_of
from vitdeploy.verdict import incomparable, judge


def gate(
    path: Path,
    limits: Mapping[str, float | None],
    progress: Progress,
    *,
    baseline: Path | None = None,
    save_baseline: Path | None = None,
    junit_file: Path | None = None,
    markdown_file: Path | None = None,
) -> Gate:
    """Judge an artifact by its stored evidence; `limits` win over the recipe's.

    A baseline folder is timed against this artifact, interleaved, here and now, unless it may not be compared with or
    one of the two cannot run here; a baseline file is compared with.

    Raises:
        ArtifactError: the artifact or the baseline is damaged.
        RecipeError: a limit is not one.
        MeasureError: a baseline is to be saved of a doubtful measurement; the verdict is written nevertheless.
    """
    if baseline is not None and save_baseline is not None and baseline.absolute() == save_baseline.absolute():
        raise UsageError(
            f"--baseline and --save-baseline are both {baseline}: it would be overwritten by what it judges",
            fix="Save to another file, and move it there once the verdict is in.",
        )
    artifact = artifacts.load(path)
    given: dict[str, Any] = {k: v for k, v in limits.items() if v is not None}
    spec = parse(GateSpec, {**artifact.manifest.recipe.gate.model_dump(), **given}, where="limits")
    audit, bench, evaluation, missing = _evidence(artifact)
    known, interleaved, untimed = None, None, ""
    if baseline is not None and baseline.is_dir():
        old = artifacts.load(baseline)
        known = _of_folder(old)
        interleaved, untimed = _in_turns(old, known, artifact, evaluation, progress)
    elif baseline is not None:
        known = baselines.read(baseline)
    recipe = artifact.manifest.recipe
    verdict = judge(
        audit,
        bench,
        evaluation,
        spec,
        missing=missing,
        stage=artifact.manifest.stage,
        random_weights=artifact.random_weights,
        baseline=known,
        manifest=artifact.digest,
        machine=environment.host().machine,
        model_digest=artifact.manifest.model.digest,
        interleaved=interleaved,
        size_bytes=artifact.deployed_bytes,
        recipe=baselines.decisive_keys(recipe),
        untimed=untimed,
        against=recipe.bench.against,
    )
    artifact.write_evidence(verdict)
    if junit_file is not None:
        junit.write(verdict, junit_file)
    summary = summarize(audit, bench, evaluation, verdict, random_weights=artifact.random_weights)
    if markdown_file is not None:
        markdown.write(verdict, markdown_file, summary)
    github.publish(verdict, summary, sys.stderr)
    if save_baseline is not None:
        baselines.write(save_baseline, _baseline(artifact, audit, bench, evaluation))
    return verdict


def _evidence(artifact: Artifact) -> tuple[Audit | None, Bench | None, Eval | None, dict[str, str]]:
    missing = {}
    audit: Audit | None = None
    try:
        audit = inspect(artifact.path)
    except VitdeployError as error:
        missing["audit"] = error.message
    bench, why = artifact.read_evidence(Bench)
    if bench is None:
        missing["bench"] = f"{why}: run vitdeploy bench {artifact.path}"
    evaluation, why = artifact.read_evidence(Eval)
    if evaluation is None:
        missing["eval"] = f"{why}: run vitdeploy eval {artifact.path}"
    return audit, bench, evaluation, missing


def _of_folder(baseline: Artifact) -> baselines.Baseline:
    """What the folder's own evidence says; a doubtful measurement says nothing."""
    audit, bench, evaluation, _ = _evidence(baseline)
    return _baseline(baseline, audit, bench if bench is not None and bench.valid else None, evaluation)


def _in_turns(
    baseline: Artifact, known: baselines.Baseline, artifact: Artifact, evaluation: Eval | None, progress: Progress
) -> tuple[Bench | None, str]:
    """Both timed and started here and now, the baseline first; or why they were not. Nothing is timed in vain."""
    spec = artifact.manifest.recipe
    for folder in (baseline, artifact):
        if folder.manifest.stage != "artifact":
            return None, f"{folder.path} is only a bundle: compile it on the device"
    data = evaluation.data_digest if evaluation is not None else ""
    if why := incomparable(known, artifact.manifest.model.digest, baselines.decisive_keys(spec), data):
        return None, why
    threads, batch = threads_of(spec), spec.target.batch.opt
    try:
        images = same_images([baseline, artifact])
        found = latency.measure_reopened(
            [partial(open_session, baseline, threads), partial(open_session, artifact, threads)],
            [feeds(baseline, images), feeds(artifact, images)],
            batch=batch,
            seconds=spec.bench.seconds,
            progress=progress,
        )
    except (TargetUnavailable, UsageError) as error:
        return None, error.message
    with progress.step("Start both"):
        runs = tuple(
            run.model_copy(update={"manifest": side.digest, "startup": started(side, threads, batch, progress)})
            for run, side in zip(found.runs, (baseline, artifact), strict=True)
        )
    told = {"runs": runs, "machine": environment.host().machine, "manifest": artifact.digest}
    return found.model_copy(update=told), ""


def _baseline(
    artifact: Artifact, audit: Audit | None, bench: Bench | None, evaluation: Eval | None
) -> baselines.Baseline:
    if audit is None:
        raise UsageError(f"{artifact.path} has no audit", fix=f"Run vitdeploy inspect {artifact.path}.")
    return baselines.make(
        audit,
        bench,
        evaluation,
        machine=bench.machine if bench is not None and bench.machine else environment.host().machine,
        model_digest=artifact.manifest.model.digest,
        recipe_digest=artifact.manifest.recipe_digest,
        recipe=baselines.decisive_keys(artifact.manifest.recipe),
        size_bytes=artifact.deployed_bytes,
    )
