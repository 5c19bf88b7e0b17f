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
from vitdeploy.commands.sweep.periods import Clock
from vitdeploy.commands.sweep.record import describe_trial, judge_trial, record_trial
from vitdeploy.commands.sweep.references import Fetch, References, no_reference
from vitdeploy.errors import SourceError
from vitdeploy.evidence import Bench, Eval, TrialRecord, WorkPeriod
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
        node: the name of the node that the trials run on; empty for this machine.
        fetch: returns a file of `references/` that is elsewhere; None if there is none.
    """

    progress: Progress
    naming: Naming = field(default_factory=Naming)
    cache: GraphCache | None = None
    alone: Alone = nullcontext
    node: str = ""
    fetch: Fetch = no_reference


@dataclass(frozen=True)
class Ended:
    """The record of a trial that ran; `unloadable` if its model could not be loaded."""

    record: TrialRecord
    unloadable: bool = False


def run_trial(trial: TrialSpec, sweep: Path, tools: Tools, seconds: float | None) -> Ended:
    """Run a trial and store it in the sweep's folder.

    Args:
        trial: its description.
        sweep: the folder of the sweep.
        tools: what trials share.
        seconds: the time to measure latency; None leaves that to `time_trial`.

    Raises:
        ArtifactError: its folder cannot be written, or the disk is full. Any other failure is part of the record.
    """
    started, steps, progress = time.monotonic(), list[str](), tools.progress
    references = References(sweep / REFERENCES, tools.naming, progress, tools.fetch)
    recipe, unloadable = trial.recipe, False
    whole, part = (tools.alone, nullcontext) if compares_times(trial) else (nullcontext, tools.alone)
    exporting, timing = Clock(tools.node), Clock(tools.node)

    def begin(step: str) -> None:
        steps.append(step)
        if step == "bench":
            exporting.stop()

    with trial_folder(sweep, trial.name) as folder:
        place = folder / _WORK / ARTIFACT  # an export locks the folder around its own, and `folder` is locked already
        try:
            with exporting.measure(whole()):
                results = run_steps(
                    recipe, place, progress, cache=tools.cache,
                    plan=None if seconds is None else Plan(seconds=seconds, profile=True), timed=seconds is not None,
                    find_reference=references.find, alone=lambda: timing.measure(part()), on_step=begin,
                )  # fmt: skip
            steps.append("gate")
            artifact = results.exported.artifact
            record = record_trial(trial, artifact, results.evaluation, results.audit, results.timing, seconds or 0.0)
            record = judge_trial(record, trial, artifact)
        except Exception as error:  # noqa: BLE001  the other trials go on, whatever happened to this one
            raise_if_disk_is_full(error, sweep)
            with progress.step(f"Record why {trial.title} failed"):  # an interrupt that a library hid is raised here
                record = _describe_failure(trial, steps[-1] if steps else "export", error, place)
            unloadable = isinstance(error, SourceError) and record.step == "export"
        if place.exists():
            place.rename(folder / ARTIFACT)
        shutil.rmtree(folder / _WORK, ignore_errors=True)
        taken = round(time.monotonic() - started, 1)
        record = replace(record, seconds=taken, exported=exporting.period, timed=timing.period)
        (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Ended(record, unloadable)


def fail_trial(trial: TrialSpec, sweep: Path, step: str, error: Exception) -> TrialRecord:
    """Store why a trial failed that left nothing."""
    return _store_failure(_describe_failure(trial, step, error, Path(ARTIFACT)), sweep)


def repeat_failure(trial: TrialSpec, sweep: Path, first: TrialRecord) -> TrialRecord:
    """Store that a trial fails for the reason of an earlier one, without trying it."""
    failed = {"step": first.step, "reason": first.reason, "fix": first.fix, "repeats": first.name}
    return _store_failure(describe_trial(trial, "failed").model_copy(update=failed), sweep)


def _store_failure(record: TrialRecord, sweep: Path) -> TrialRecord:
    with trial_folder(sweep, record.name) as folder:
        (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return record


def lengthen_bench(trial: TrialSpec, sweep: Path, tools: Tools, seconds: float) -> TrialRecord:
    """Time the artifact of a finished trial again, for longer, and store the result.

    Raises:
        VitdeployError: the artifact is damaged, or cannot be timed.
    """
    artifact, clock = load_trial(trial, sweep), Clock(tools.node)
    with clock.measure(tools.alone()):
        timing = bench([artifact], tools.progress, Plan(seconds=seconds, profile=True))
    return _store_again(trial, sweep, artifact, timing, seconds, timed=clock.period)


def time_trial(trial: TrialSpec, sweep: Path, tools: Tools, seconds: float) -> TrialRecord:
    """Time a trial that was run without its bench, and store the result, or why it failed.

    Raises:
        ArtifactError: the disk is full. Any other failure is part of the record.
    """
    started, file = time.monotonic(), sweep / TRIALS / trial.name / RECORD
    before = TrialRecord.model_validate_json(file.read_bytes())
    try:
        record = lengthen_bench(trial, sweep, tools, seconds)
    except Exception as error:  # noqa: BLE001  as in `run_trial`
        raise_if_disk_is_full(error, sweep)
        return fail_bench(trial, file.parent, error, time.monotonic() - started)
    record = replace(record, seconds=round(before.seconds + time.monotonic() - started, 1))
    write_record(record, file)
    return record


def fail_bench(trial: TrialSpec, folder: Path, error: Exception, seconds: float = 0.0) -> TrialRecord:
    """Store why a trial could not be timed, `seconds` after its export. Artifact and evidence stay."""
    before = TrialRecord.model_validate_json((folder / RECORD).read_bytes())
    record = _describe_failure(trial, "bench", error, folder / ARTIFACT)
    record = replace(record, exported=before.exported, seconds=round(before.seconds + seconds, 1))
    write_record(record, folder / RECORD)
    return record


def compares_times(trial: TrialSpec) -> bool:
    """Return True if the export of a trial measures time too, to choose between candidates."""
    recipe = trial.recipe
    return recipe.precision.kind == AUTO or recipe.tokens.searches or recipe.target.portable


def judge_again(trial: TrialSpec, sweep: Path, record: TrialRecord) -> TrialRecord:
    """Judge a finished trial by other limits, and store the verdict.

    Raises:
        VitdeployError: the artifact is damaged.
    """
    artifact = load_trial(trial, sweep)
    timing, _ = artifact.read_evidence(Bench)
    return _store_again(trial, sweep, artifact, timing, record.bench_seconds, timed=record.timed)


def load_trial(trial: TrialSpec, sweep: Path) -> Artifact:
    """Load the artifact of a finished trial. Its model is the sweep file's, so its code may run."""
    return give_own_model(artifacts.load(sweep / TRIALS / trial.name / ARTIFACT), trial.recipe.model)


def _store_again(
    trial: TrialSpec,
    sweep: Path,
    artifact: Artifact,
    timing: Bench | None,
    seconds: float,
    *,
    timed: WorkPeriod | None,
) -> TrialRecord:
    from vitdeploy.commands.inspect.inspect import inspect

    file = sweep / TRIALS / trial.name / RECORD
    before = TrialRecord.model_validate_json(file.read_bytes())
    evaluation, _ = artifact.read_evidence(Eval)
    record = record_trial(trial, artifact, evaluation, inspect(artifact), timing, seconds)
    record = judge_trial(record, trial, artifact)
    record = replace(record, seconds=before.seconds, exported=before.exported, timed=timed)
    write_record(record, file)
    return record


def write_record(record: TrialRecord, file: Path) -> None:
    """Write the record of a trial, completely or not at all."""
    with atomic_file(file) as temporary:
        temporary.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def trial_folder(sweep: Path, name: str) -> AbstractContextManager[Path]:
    """Return the new folder of a trial. It replaces one of an older run, also if its record was deleted."""
    return atomic_folder(sweep / TRIALS / name, force=True, marks=(RECORD, ARTIFACT))


def _describe_failure(trial: TrialSpec, step: str, error: Exception, place: Path) -> TrialRecord:
    reason, fix = explain(error)
    texts = {"reason": reason, "fix": fix}  # without the name of a folder that is renamed
    plain = {key: text.replace(str(place), ARTIFACT) for key, text in texts.items()}
    return describe_trial(trial, "failed").model_copy(update={"step": step, **plain})
