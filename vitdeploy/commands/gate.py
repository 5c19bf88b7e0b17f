"""`vitdeploy gate`: read the stored evidence, judge it, and write the verdict for people and CI systems."""

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
    """The evidence stored beside an artifact, and reasons for missing pieces."""

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
    """Judge an artifact by its stored evidence.

    A baseline folder is timed in turns with this artifact, here and now, unless the two cannot be compared or one of
    them cannot run here. With a baseline file, stored figures are compared.

    Args:
        artifact: the artifact or bundle.
        limits: by the names of `GateSpec`; they override the recipe's unless they are None.
        progress: gets the steps and warnings.
        baseline: the folder of an earlier artifact, or a file that `save_baseline` has written.
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
    recipe_limits = artifact.manifest.recipe.gate.model_dump()
    overrides: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
    spec = parse(GateSpec, {**recipe_limits, **overrides}, where="limits")
    stored = _read_evidence(artifact)
    before = None if baseline is None else _read_before(baseline, artifact, stored.evaluation, progress)
    verdict = artifact.write_evidence(judge(_make_case(artifact, stored), spec, before))
    if junit_file is not None:
        junit.write(verdict, junit_file)
    summary = summarize(stored.audit, stored.bench, stored.evaluation, verdict, random_weights=artifact.random_weights)
    if markdown_file is not None:
        markdown.write(verdict, markdown_file, summary)
    github.publish(verdict, summary, sys.stderr)
    if save_baseline is not None:
        baselines.write(save_baseline, _make_baseline(artifact, stored))
    return verdict


def _make_case(artifact: Artifact, stored: _Stored) -> Case:
    recipe = artifact.manifest.recipe
    return Case(
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
    """Read a baseline file; or read a baseline folder, and time it in turns with the artifact."""
    if not path.is_dir():
        return Before(baselines.read(path))
    earlier = artifacts.load(path)
    stored = _read_evidence(earlier)
    if stored.bench is not None and not stored.bench.valid:  # a doubtful measurement is not used
        stored = _Stored(stored.audit, None, stored.evaluation, stored.missing)
    baseline = _make_baseline(earlier, stored)
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
