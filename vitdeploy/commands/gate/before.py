"""An earlier artifact: read, timed in turns with the one that is judged, or answering the same samples."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import environment
from vitdeploy.artifact import Artifact
from vitdeploy.commands.bench.costs import measure_startup
from vitdeploy.commands.evaluate.release import compare_with_release
from vitdeploy.commands.gate.evidence import Judged, read_evidence
from vitdeploy.errors import MeasureError, TargetUnavailable, UsageError
from vitdeploy.evidence import Bench, Eval
from vitdeploy.frozen import replace
from vitdeploy.measure import baseline as baselines
from vitdeploy.measure import latency
from vitdeploy.progress import Progress
from vitdeploy.recipe import GateSpec
from vitdeploy.runtime.artifact_session import count_threads, feed, make_shared_images, open_session
from vitdeploy.verdict import (
    Before,
    explain_incomparable,
)


def read_before(path: Path, artifact: Artifact, evaluation: Eval | None, progress: Progress) -> Before:
    """Read a baseline file; or read a baseline folder, and time it in turns with the artifact."""
    if not path.is_dir():
        return Before(baselines.read(path))
    previous = artifacts.load(path)
    evidence = read_evidence(previous, store=False)  # it is somebody else's folder, and may be signed
    if evidence.examined.faults:
        fault = evidence.examined.faults[0]
        return Before(untimed=f"the evidence of {path} is refused: {fault.name}: {fault.why}")
    bench = evidence.examined.bench
    if bench is not None and not bench.valid:  # a doubtful measurement is not used
        evidence = dataclasses.replace(evidence, examined=dataclasses.replace(evidence.examined, bench=None))
    baseline = make_baseline(previous, evidence)
    recipe = artifact.manifest.recipe
    for folder in (previous, artifact):
        if folder.manifest.stage != "artifact":
            return Before(baseline, untimed=f"{folder.path} is only a bundle: on the device run vitdeploy compile")
    data = evaluation.data_digest if evaluation is not None else ""
    if reason := explain_incomparable(baseline, artifact.manifest.model.digest, baselines.decisive_keys(recipe), data):
        return Before(baseline, untimed=reason)
    try:
        return Before(baseline, interleaved=_time_in_turns(previous, artifact, progress))
    except (TargetUnavailable, UsageError) as error:
        return Before(baseline, untimed=error.message)


def compare_answers(
    path: Path, artifact: Artifact, data: str, groups: Path | None, limits: GateSpec, progress: Progress
) -> Before:
    """Let the earlier artifact and this one answer the same samples; time them in turns if slow-down has a limit."""
    previous = artifacts.load(path)
    release = compare_with_release(previous, artifact, data, progress, groups=groups)
    for doubt in release.doubts:
        progress.warn(doubt)
    if limits.max_slowdown_pct is None:
        return Before(release=release)
    try:
        return Before(release=release, interleaved=_time_in_turns(previous, artifact, progress))
    except (TargetUnavailable, UsageError) as error:
        return Before(release=release, untimed=error.message)


def _time_in_turns(previous: Artifact, artifact: Artifact, progress: Progress) -> Bench:
    """Time both artifacts in turns, the earlier one as the reference, and measure the start-up of both."""
    recipe = artifact.manifest.recipe
    threads, batch = count_threads(recipe), recipe.target.batch.opt
    images = make_shared_images([previous, artifact], batch)
    bench = latency.measure_reopened(
        [partial(open_session, previous, threads), partial(open_session, artifact, threads)],
        [feed(previous, images), feed(artifact, images)],
        batch=batch,
        seconds=recipe.bench.seconds,
        progress=progress,
    )
    with progress.step("Start both"):
        startups = [measure_startup(side, threads, batch, progress) for side in (previous, artifact)]
    reference, run = bench.runs
    runs = (
        replace(reference, role="reference", manifest=previous.digest, startup=startups[0]),
        replace(run, role="artifact", manifest=artifact.digest, startup=startups[1]),
    )
    return replace(bench, runs=runs, machine=environment.host().machine, manifest=artifact.digest)


def make_baseline(artifact: Artifact, evidence: Judged) -> baselines.Baseline:
    """Return the figures of an artifact that later ones are compared with.

    Raises:
        UsageError: there is no audit.
        MeasureError: the evidence is refused.
    """
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
        audited_on=evidence.stored.audited_on,
    )
