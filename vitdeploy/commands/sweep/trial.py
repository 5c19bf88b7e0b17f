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
from vitdeploy.commands.export_order import Elsewhere
from vitdeploy.commands.given import give_own_model
from vitdeploy.commands.run import run_steps
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.commands.sweep.failures import explain, raise_if_disk_is_full
from vitdeploy.commands.sweep.hosts import SweepHost
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.commands.sweep.on_host import find_reference, finish_there, make_host_clock, read_audit
from vitdeploy.commands.sweep.periods import Clock
from vitdeploy.commands.sweep.record import Results, describe_trial, judge_trial, record_trial
from vitdeploy.commands.sweep.references import Fetch, References, no_reference
from vitdeploy.errors import HostUnreachable, SourceError
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


def run_trial(
    trial: TrialSpec, sweep: Path, tools: Tools, seconds: float | None, host: SweepHost | None = None
) -> Ended:
    """Run a trial and store it in the sweep's folder.

    Args:
        trial: its description.
        sweep: the folder of the sweep.
        tools: what trials share.
        seconds: the time to measure latency; None leaves that to `time_trial`, or all that a host does to
            `finish_trial`.
        host: the host that compiles, evaluates and times it; None: all is done here.

    Raises:
        ArtifactError: its folder cannot be written, or the disk is full.
        HostUnreachable: the host does not answer any more. Any other failure is part of the record.
    """
    started, course = time.monotonic(), _Course(tools, host)
    references = References(sweep / REFERENCES, tools.naming, tools.progress, tools.fetch)
    unloadable = False
    with trial_folder(sweep, trial.name) as folder:
        place = folder / _WORK / ARTIFACT  # an export locks the folder around its own, and `folder` is locked already
        try:
            if host is None:
                results = _run_here(trial, place, tools, references, seconds, course)
            else:
                results = _run_for_host(trial, place, tools, references, seconds, course, host)
            course.begin("gate")
            record = judge_trial(record_trial(trial, results, seconds or 0.0), trial, results.artifact)
        except HostUnreachable:
            raise
        except Exception as error:  # noqa: BLE001  the other trials go on, whatever happened to this one
            raise_if_disk_is_full(error, sweep)
            with tools.progress.step(f"Record why {trial.title} failed"):  # an interrupt that a library hid comes now
                record = _describe_failure(trial, course.step, error, place)
            unloadable = isinstance(error, SourceError) and record.step == "export"
        if place.exists():
            place.rename(folder / ARTIFACT)
        shutil.rmtree(folder / _WORK, ignore_errors=True)
        taken = round(time.monotonic() - started, 1)
        record = replace(record, seconds=taken, exported=course.exporting.period, timed=course.timing.period)
        (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Ended(record, unloadable)


class _Course:
    """The step that a trial is in, and the times of its parts."""

    def __init__(self, tools: Tools, host: SweepHost | None) -> None:
        self.step = "export"
        self.exporting = Clock(tools.node)
        self.timing = Clock(tools.node) if host is None else make_host_clock(host)

    def begin(self, step: str) -> None:
        self.step = step
        if step in ("compile", "bench"):
            self.exporting.stop()


def _run_here(
    trial: TrialSpec, place: Path, tools: Tools, references: References, seconds: float | None, course: _Course
) -> Results:
    """Export a trial to `place`, and evaluate and time it on this machine."""
    whole, part = (tools.alone, nullcontext) if compares_times(trial) else (nullcontext, tools.alone)
    with course.exporting.measure(whole()):
        steps = run_steps(
            trial.recipe, place, tools.progress, cache=tools.cache,
            plan=None if seconds is None else Plan(seconds=seconds, profile=True), timed=seconds is not None,
            find_reference=references.find, alone=lambda: course.timing.measure(part()), on_step=course.begin,
        )  # fmt: skip
    return Results(steps.exported.artifact, steps.evaluation, steps.audit, steps.timing)


def _run_for_host(
    trial: TrialSpec,
    place: Path,
    tools: Tools,
    references: References,
    seconds: float | None,
    course: _Course,
    host: SweepHost,
) -> Results:
    """Export a trial to `place` as a bundle, and let a host do the rest. With None for seconds that is left out."""
    recipe = trial.recipe
    host.require(recipe.target)
    with course.exporting.measure(nullcontext()):
        elsewhere = Elsewhere(host.name, host.facts)
        steps = run_steps(
            recipe, place, tools.progress, cache=tools.cache, on_step=course.begin, elsewhere=elsewhere
        )  # fmt: skip
        bundle = steps.exported.artifact
        course.begin("eval")
        reference = find_reference(bundle, references)
    if seconds is None:
        return Results(bundle, None, steps.audit, None)
    with course.timing.measure(nullcontext()):
        return finish_there(
            bundle, host, reference=reference, seconds=seconds, progress=tools.progress,
            on_step=course.begin,
        )  # fmt: skip


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


def lengthen_bench(
    trial: TrialSpec, sweep: Path, tools: Tools, seconds: float, host: SweepHost | None = None
) -> TrialRecord:
    """Time the artifact of a finished trial again, for longer, on its host if it has one, and store the result.

    Raises:
        VitdeployError: the artifact is damaged, or cannot be timed.
    """
    artifact, clock = load_trial(trial, sweep), Clock(tools.node) if host is None else make_host_clock(host)
    with clock.measure(tools.alone() if host is None else nullcontext()):
        if host is None:
            timing = bench([artifact], tools.progress, Plan(seconds=seconds, profile=True))
        else:
            timing = host.bench(artifact, seconds, tools.progress)
    return _store_again(trial, sweep, artifact, timing, seconds, timed=clock.period)


def time_trial(
    trial: TrialSpec, sweep: Path, tools: Tools, seconds: float, host: SweepHost | None = None
) -> TrialRecord:
    """Time a trial that was run without its bench, and store the result, or why it failed.

    Raises:
        ArtifactError: the disk is full.
        HostUnreachable: the host does not answer any more. Any other failure is part of the record.
    """
    started, file = time.monotonic(), sweep / TRIALS / trial.name / RECORD
    before = TrialRecord.model_validate_json(file.read_bytes())
    try:
        record = lengthen_bench(trial, sweep, tools, seconds, host)
    except HostUnreachable:
        raise
    except Exception as error:  # noqa: BLE001  as in `run_trial`
        raise_if_disk_is_full(error, sweep)
        return fail_bench(trial, file.parent, error, time.monotonic() - started)
    record = replace(record, seconds=round(before.seconds + time.monotonic() - started, 1))
    write_record(record, file)
    return record


def finish_trial(trial: TrialSpec, sweep: Path, tools: Tools, seconds: float, host: SweepHost) -> TrialRecord:
    """Let a host finish a trial that was exported for it, and store the results, or why they failed.

    Raises:
        ArtifactError: the disk is full.
        HostUnreachable: the host does not answer any more. Any other failure is part of the record.
    """
    started, course, file = time.monotonic(), _Course(tools, host), sweep / TRIALS / trial.name / RECORD
    before = TrialRecord.model_validate_json(file.read_bytes())
    try:
        bundle = load_trial(trial, sweep)
        reference = find_reference(bundle, References(sweep / REFERENCES, tools.naming, tools.progress, tools.fetch))
        with course.timing.measure(nullcontext()):
            results = finish_there(
                bundle, host, reference=reference, seconds=seconds, progress=tools.progress,
                on_step=course.begin,
            )  # fmt: skip
        record = judge_trial(record_trial(trial, results, seconds), trial, results.artifact)
    except HostUnreachable:
        raise
    except Exception as error:  # noqa: BLE001  as in `run_trial`
        raise_if_disk_is_full(error, sweep)
        record = _describe_failure(trial, course.step, error, file.parent / ARTIFACT)
    taken = round(before.seconds + time.monotonic() - started, 1)
    record = replace(record, seconds=taken, exported=before.exported, timed=course.timing.period)
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
    """Return True if the export of a trial measures time here, to choose between candidates."""
    recipe = trial.recipe
    searches = recipe.precision.kind == AUTO or recipe.tokens.searches or recipe.target.portable
    return searches and not trial.hosts


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
    audit = read_audit(artifact) if trial.hosts else inspect(artifact)
    record = record_trial(trial, Results(artifact, evaluation, audit, timing), seconds)
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
