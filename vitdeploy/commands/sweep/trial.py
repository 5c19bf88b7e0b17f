"""One trial: export, evaluate, inspect, time and judge what its description says, in a folder of its own.

A trial depends on its description and on the sweep's folder only, so that any process can run it. Its folder appears
complete or not at all: one that was killed begins anew.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact, atomic_file, atomic_folder
from vitdeploy.commands.bench.bench import Plan, bench
from vitdeploy.commands.given import give_own_model
from vitdeploy.commands.run import run_steps
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.commands.sweep.failures import explain, raise_if_disk_is_full
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.commands.sweep.record import describe_trial, judge_trial, record_trial
from vitdeploy.commands.sweep.references import References
from vitdeploy.errors import SourceError
from vitdeploy.evidence import Bench, Eval, TrialRecord
from vitdeploy.frozen import replace
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Progress
from vitdeploy.recipe import AUTO

TRIALS, REFERENCES = "trials", "references"
RECORD, ARTIFACT = "trial.json", "artifact"
_WORK = "work"

Alone = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Tools:
    """The tools that all trials use.

    Attributes:
        progress: gets the steps and warnings.
        naming: has the digests of files.
        cache: the cache of exported graphs; None exports again.
        alone: entered around each measurement of time, so that nothing else runs then.
    """

    progress: Progress
    naming: Naming = field(default_factory=Naming)
    cache: GraphCache | None = None
    alone: Alone = nullcontext


@dataclass(frozen=True)
class Ended:
    """The record of a trial that ran; `unloadable` if its model could not be loaded."""

    record: TrialRecord
    unloadable: bool = False


def run_trial(trial: TrialSpec, sweep: Path, tools: Tools, seconds: float) -> Ended:
    """Run a trial and store it in the sweep's folder.

    Args:
        trial: its description.
        sweep: the folder of the sweep.
        tools: what trials share.
        seconds: the time to measure latency.

    Raises:
        ArtifactError: its folder cannot be written, or the disk is full. Any other failure is part of the record.
    """
    started, steps, progress = time.monotonic(), list[str](), tools.progress
    references = References(sweep / REFERENCES, tools.naming, progress)
    recipe, unloadable = trial.recipe, False
    compares_times = recipe.precision.kind == AUTO or recipe.tokens.searches or recipe.target.portable
    whole, part = (tools.alone, nullcontext) if compares_times else (nullcontext, tools.alone)
    with _trial_folder(sweep, trial.name) as folder:
        place = folder / _WORK / ARTIFACT  # an export locks the folder around its own, and `folder` is locked already
        try:
            with whole():
                results = run_steps(
                    recipe, place, progress, cache=tools.cache,
                    plan=Plan(seconds=seconds, profile=True), find_reference=references.find, alone=part,
                    on_step=steps.append,
                )  # fmt: skip
            steps.append("gate")
            artifact = results.exported.artifact
            record = record_trial(trial, artifact, results.evaluation, results.audit, results.timing, seconds)
            record = judge_trial(record, trial, artifact)
        except Exception as error:  # noqa: BLE001  the other trials go on, whatever happened to this one
            raise_if_disk_is_full(error, sweep)
            with progress.step(f"Record why {trial.title} failed"):  # an interrupt that a library hid is raised here
                record = _describe_failure(trial, steps[-1] if steps else "export", error, place)
            unloadable = isinstance(error, SourceError) and record.step == "export"
        if place.exists():
            place.rename(folder / ARTIFACT)
        shutil.rmtree(folder / _WORK, ignore_errors=True)
        record = replace(record, seconds=round(time.monotonic() - started, 1))
        (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Ended(record, unloadable)


def repeat_failure(trial: TrialSpec, sweep: Path, first: TrialRecord) -> TrialRecord:
    """Store that a trial fails for the reason of an earlier one, without trying it."""
    failed = {"step": first.step, "reason": first.reason, "fix": first.fix, "repeats": first.name}
    record = describe_trial(trial, "failed").model_copy(update=failed)
    with _trial_folder(sweep, trial.name) as folder:
        (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return record


def lengthen_bench(trial: TrialSpec, sweep: Path, tools: Tools, seconds: float) -> TrialRecord:
    """Time the artifact of a finished trial again, for longer, and store the result.

    Raises:
        VitdeployError: the artifact is damaged, or cannot be timed.
    """
    artifact = load_trial(trial, sweep)
    with tools.alone():
        timing = bench([artifact], tools.progress, Plan(seconds=seconds, profile=True))
    return _store_again(trial, sweep, artifact, timing, seconds)


def judge_again(trial: TrialSpec, sweep: Path, record: TrialRecord) -> TrialRecord:
    """Judge a finished trial by other limits, and store the verdict.

    Raises:
        VitdeployError: the artifact is damaged.
    """
    artifact = load_trial(trial, sweep)
    timing, _ = artifact.read_evidence(Bench)
    return _store_again(trial, sweep, artifact, timing, record.bench_seconds)


def load_trial(trial: TrialSpec, sweep: Path) -> Artifact:
    """Load the artifact of a finished trial. Its model is the sweep file's, so its code may run."""
    return give_own_model(artifacts.load(sweep / TRIALS / trial.name / ARTIFACT), trial.recipe.model)


def _store_again(
    trial: TrialSpec, sweep: Path, artifact: Artifact, timing: Bench | None, seconds: float
) -> TrialRecord:
    from vitdeploy.commands.inspect.inspect import inspect

    file = sweep / TRIALS / trial.name / RECORD
    before = TrialRecord.model_validate_json(file.read_bytes())
    evaluation, _ = artifact.read_evidence(Eval)
    record = record_trial(trial, artifact, evaluation, inspect(artifact), timing, seconds)
    record = replace(judge_trial(record, trial, artifact), seconds=before.seconds)
    with atomic_file(file) as temporary:
        temporary.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return record


def _trial_folder(sweep: Path, name: str) -> AbstractContextManager[Path]:
    """Return the new folder of a trial. It replaces one of an older run, also if its record was deleted."""
    return atomic_folder(sweep / TRIALS / name, force=True, marks=(RECORD, ARTIFACT))


def _describe_failure(trial: TrialSpec, step: str, error: Exception, place: Path) -> TrialRecord:
    reason, fix = explain(error)
    texts = {"reason": reason, "fix": fix}  # without the name of a folder that is renamed
    plain = {key: text.replace(str(place), ARTIFACT) for key, text in texts.items()}
    return describe_trial(trial, "failed").model_copy(update={"step": step, **plain})
