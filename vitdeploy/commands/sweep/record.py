"""The record of a trial: its figures, taken from the evidence beside its artifact."""

from __future__ import annotations

from typing import NamedTuple

from vitdeploy import targets
from vitdeploy.artifact import Artifact
from vitdeploy.commands.figures import read_figures
from vitdeploy.commands.gate.evidence import make_case, read_evidence
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.evidence import Audit, Bench, Eval, TrialRecord, TrialState
from vitdeploy.frozen import replace
from vitdeploy.verdict import judge


class Results(NamedTuple):
    """The results of the steps of a trial. A bundle has no evaluation and no timing."""

    artifact: Artifact
    evaluation: Eval | None
    audit: Audit
    timing: Bench | None


def describe_trial(trial: TrialSpec, status: TrialState) -> TrialRecord:
    """Return the record of a trial without figures."""
    recipe = trial.recipe
    target = targets.find(recipe.target)
    return TrialRecord(
        name=trial.name,
        setting=trial.setting,
        axes=trial.axes,
        model=recipe.model.spec,
        target=recipe.target.kind,
        device=recipe.target.device or target.device,
        precision=recipe.precision.kind or target.default_precision,
        status=status,
    )


def record_trial(trial: TrialSpec, results: Results, seconds: float) -> TrialRecord:
    """Return the record of a trial whose steps have ended well, with a bench that was given some seconds."""
    artifact, evaluation, audit, timing = results
    figures = read_figures(artifact, evaluation, audit, timing)
    if artifact.manifest.stage == "bundle":
        cannot = targets.find(trial.recipe.target).unavailable()
        figures["reason"] = "it is compiled on its device" if cannot is None else cannot.why
        figures["fix"] = "Copy the bundle there, and run vitdeploy compile, eval and bench."
    if timing is not None:
        figures["bench_seconds"] = seconds
    status: TrialState = "bundle" if artifact.manifest.stage == "bundle" else "done"
    return describe_trial(trial, status).model_copy(update=figures)


def judge_trial(record: TrialRecord, trial: TrialSpec, artifact: Artifact) -> TrialRecord:
    """Add the verdict of the gate on the trial's limits, and store it beside the artifact."""
    limits = {key: value for key, value in trial.limits.model_dump().items() if value is not None}
    if not limits:
        return replace(record, limits={}, verdict="", failing=())
    evidence = read_evidence(artifact)
    verdict = judge(make_case(artifact, evidence, trial.limits), trial.limits, None)
    verdict = artifact.write_evidence(replace(verdict, digest=artifact.evidence_digest()))
    failing = tuple(f"{check.name}: {check.why}" for check in verdict.checks if check.status != "pass")
    return replace(record, limits=limits, verdict=verdict.verdict, failing=failing)
