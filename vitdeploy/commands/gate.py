"""`vitdeploy gate`: collect the stored evidence, judge it, and write the verdict where others look for it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vitdeploy import artifact as artifacts
from vitdeploy import environment
from vitdeploy.artifact import Artifact
from vitdeploy.commands.bench.costs import measure_startup
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import TargetUnavailable, UsageError, VitdeployError
from vitdeploy.evidence import Audit, Bench, Eval, Gate
from vitdeploy.frozen import parse, replace
from vitdeploy.measure import baseline as baselines
from vitdeploy.measure import latency
from vitdeploy.progress import Progress
from vitdeploy.recipe import GateSpec
from vitdeploy.render import github, junit, markdown
from vitdeploy.render.summary import summarize
from vitdeploy.runtime.artifact_session import count_threads, feed, make_shared_images, open_session
from vitdeploy.verdict import Before, Case, explain_incomparable, judge


@dataclass(frozen=True)
class _Stored:
    """The evidence stored beside an artifact, and why a piece of it is missing."""

    audit: Audit | None
    bench: Bench | None
    evaluation: Eval | None
    missing: Mapping[str, str]


def gate(
    artifact: Artifact,
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
    one of the two cannot run here; with a baseline file, stored figures are compared.

    Raises:
        ArtifactError: the baseline is damaged.
        RecipeError: a limit does not fit.
        MeasureError: a baseline is to be saved of a doubtful measurement; the verdict is written nevertheless.
    """
    if baseline is not None and save_baseline is not None and baseline.absolute() == save_baseline.absolute():
        raise UsageError(
            f"--baseline and --save-baseline are both {baseline}: it would be overwritten by what it judges",
            fix="Save to another file, and move it there once the verdict is in.",
        )
    recipe = artifact.manifest.recipe
    given: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
    spec = parse(GateSpec, {**recipe.gate.model_dump(), **given}, where="limits")
    stored = _read_evidence(artifact)
    before = None if baseline is None else _read_before(baseline, artifact, stored.evaluation, progress)
    case = Case(
        stored.audit,
        stored.bench,
        stored.evaluation,
        missing=stored.missing,
        stage=artifact.manifest.stage,
        manifest=artifact.digest,
        machine=environment.host().machine,
        model_digest=artifact.manifest.model.digest,
        recipe=baselines.decisive_keys(recipe),
        size_bytes=artifact.manifest.deployed_bytes,
        random_weights=artifact.random_weights,
        against=recipe.bench.against,
        against_artifact=Path(recipe.bench.against).is_absolute(),
    )
    verdict = artifact.write_evidence(judge(case, spec, before))
    if junit_file is not None:
        junit.write(verdict, junit_file)
    summary = summarize(stored.audit, stored.bench, stored.evaluation, verdict, random_weights=artifact.random_weights)
    if markdown_file is not None:
        markdown.write(verdict, markdown_file, summary)
    github.publish(verdict, summary, sys.stderr)
    if save_baseline is not None:
        baselines.write(save_baseline, _make_baseline(artifact, stored))
    return verdict


def _read_evidence(artifact: Artifact) -> _Stored:
    missing = {}
    audit: Audit | None = None
    try:
        audit = inspect(artifact)
    except VitdeployError as error:
        missing["audit"] = error.message
    bench, reason = artifact.read_evidence(Bench)
    if bench is None:
        missing["bench"] = f"{reason}: run vitdeploy bench {artifact.path}"
    evaluation, reason = artifact.read_evidence(Eval)
    if evaluation is None:
        missing["eval"] = f"{reason}: run vitdeploy eval {artifact.path}"
    return _Stored(audit, bench, evaluation, missing)


def _read_before(path: Path, artifact: Artifact, evaluation: Eval | None, progress: Progress) -> Before:
    """Read a baseline: a file; or a folder, which is timed against the artifact."""
    if not path.is_dir():
        return Before(baselines.read(path))
    earlier = artifacts.load(path)
    stored = _read_evidence(earlier)
    if stored.bench is not None and not stored.bench.valid:  # a doubtful measurement says nothing
        stored = _Stored(stored.audit, None, stored.evaluation, stored.missing)
    baseline = _make_baseline(earlier, stored)
    recipe = artifact.manifest.recipe
    for folder in (earlier, artifact):
        if folder.manifest.stage != "artifact":
            return Before(baseline, untimed=f"{folder.path} is only a bundle: compile it on the device")
    data = evaluation.data_digest if evaluation is not None else ""
    if reason := explain_incomparable(baseline, artifact.manifest.model.digest, baselines.decisive_keys(recipe), data):
        return Before(baseline, untimed=reason)
    try:
        return Before(baseline, interleaved=_time_in_turns(earlier, artifact, progress))
    except (TargetUnavailable, UsageError) as error:
        return Before(baseline, untimed=error.message)


def _time_in_turns(earlier: Artifact, artifact: Artifact, progress: Progress) -> Bench:
    """Time and start both here and now, the earlier one as the reference."""
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
    reference, own = bench.runs
    runs = (
        replace(reference, role="reference", manifest=earlier.digest, startup=startups[0]),
        replace(own, role="artifact", manifest=artifact.digest, startup=startups[1]),
    )
    return replace(bench, runs=runs, machine=environment.host().machine, manifest=artifact.digest)


def _make_baseline(artifact: Artifact, stored: _Stored) -> baselines.Baseline:
    if stored.audit is None:
        raise UsageError(f"{artifact.path} has no audit", fix=f"Run vitdeploy inspect {artifact.path}.")
    bench = stored.bench
    return baselines.make(
        stored.audit,
        bench,
        stored.evaluation,
        machine=bench.machine if bench is not None and bench.machine else environment.host().machine,
        model_digest=artifact.manifest.model.digest,
        recipe_digest=artifact.manifest.recipe_digest,
        recipe=baselines.decisive_keys(artifact.manifest.recipe),
        size_bytes=artifact.manifest.deployed_bytes,
    )
