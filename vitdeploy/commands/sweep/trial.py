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

from vitdeploy.artifact import Artifact, atomic_folder
from vitdeploy.commands.bench.bench import Plan
from vitdeploy.commands.export_order import Elsewhere
from vitdeploy.commands.run import run_steps
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.commands.sweep.failures import explain, raise_if_disk_is_full
from vitdeploy.commands.sweep.hosts import SweepHost
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.commands.sweep.on_host import find_reference, finish_there, make_host_clock
from vitdeploy.commands.sweep.periods import Clock
from vitdeploy.commands.sweep.postponed import Postponed, measure_evaluation
from vitdeploy.commands.sweep.record import Results, describe_trial, judge_trial, record_trial
from vitdeploy.commands.sweep.references import Fetch, References, no_reference
from vitdeploy.errors import HostUnreachable, SourceError
from vitdeploy.evidence import TrialRecord
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
    """The record of a trial that ran.

    Attributes:
        record: the record.
        unloadable: its model could not be loaded.
        postponed: its evaluation is left to several nodes.
    """

    record: TrialRecord
    unloadable: bool = False
    postponed: Postponed | None = None


def run_trial(
    trial: TrialSpec,
    sweep: Path,
    tools: Tools,
    seconds: float | None,
    host: SweepHost | None = None,
    most_samples: int | None = None,
) -> Ended:
    """Run a trial and store it in the sweep's folder.

    Args:
        trial: its description.
        sweep: the folder of the sweep.
        tools: what trials share.
        seconds: the time to measure latency; None leaves that to `time_trial`, or all that a host does to
            `finish_trial`.
        host: the host that compiles, evaluates and times it; None: all is done here.
        most_samples: leave an evaluation of more samples out, for `answer_part`; None: of any number is done.

    Raises:
        ArtifactError: its folder cannot be written, or the disk is full.
        HostUnreachable: the host does not answer any more. Any other failure is part of the record.
    """
    started, course = time.monotonic(), _Course(tools, host, most_samples)
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
                record = describe_failure(trial, course.step, error, place)
            unloadable = isinstance(error, SourceError) and record.step == "export"
        if place.exists():
            place.rename(folder / ARTIFACT)
        shutil.rmtree(folder / _WORK, ignore_errors=True)
        taken = round(time.monotonic() - started, 1)
        record = replace(record, seconds=taken, exported=course.exporting.period, timed=course.timing.period)
        (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Ended(record, unloadable, None if record.status == "failed" else course.postponed)


class _Course:
    """The step that a trial is in, the times of its parts, and what of it is postponed."""

    def __init__(self, tools: Tools, host: SweepHost | None, most_samples: int | None = None) -> None:
        self.step = "export"
        self.postponed: Postponed | None = None
        self._most_samples = most_samples
        self.exporting = Clock(tools.node)
        self.timing = Clock(tools.node) if host is None else make_host_clock(host)

    def begin(self, step: str) -> None:
        self.step = step
        if step in ("compile", "bench"):
            self.exporting.stop()

    def postpone(self, artifact: Artifact) -> bool:
        """Postpone the evaluation of an artifact, if it is of many samples. Return True if so."""
        self.begin("eval")
        self.postponed = measure_evaluation(artifact, self._most_samples)
        return self.postponed is not None


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
            postpone=course.postpone,
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
        steps = run_steps(recipe, place, tools.progress, cache=tools.cache, on_step=course.begin, elsewhere=elsewhere)
        bundle = steps.exported.artifact
        known = references.find_known(bundle).exists()
        reference = None if not known and course.postpone(bundle) else find_reference(bundle, references)
    if seconds is None:
        return Results(bundle, None, steps.audit, None)
    with course.timing.measure(nullcontext()):
        return finish_there(
            bundle, host, reference=reference, seconds=seconds, progress=tools.progress,
            on_step=course.begin,
        )  # fmt: skip


def fail_trial(trial: TrialSpec, sweep: Path, step: str, error: Exception) -> TrialRecord:
    """Store why a trial failed that left nothing."""
    return _store_failure(describe_failure(trial, step, error, Path(ARTIFACT)), sweep)


def repeat_failure(trial: TrialSpec, sweep: Path, first: TrialRecord) -> TrialRecord:
    """Store that a trial fails for the reason of an earlier one, without trying it."""
    failed = {"step": first.step, "reason": first.reason, "fix": first.fix, "repeats": first.name}
    return _store_failure(describe_trial(trial, "failed").model_copy(update=failed), sweep)


def _store_failure(record: TrialRecord, sweep: Path) -> TrialRecord:
    with trial_folder(sweep, record.name) as folder:
        (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return record


def compares_times(trial: TrialSpec) -> bool:
    """Return True if the export of a trial measures time here, to choose between candidates."""
    recipe = trial.recipe
    searches = recipe.precision.kind == AUTO or recipe.tokens.searches or recipe.target.portable
    return searches and not trial.hosts


def trial_folder(sweep: Path, name: str) -> AbstractContextManager[Path]:
    """Return the new folder of a trial. It replaces one of an older run, also if its record was deleted."""
    return atomic_folder(sweep / TRIALS / name, force=True, marks=(RECORD, ARTIFACT))


def describe_failure(trial: TrialSpec, step: str, error: Exception, place: Path) -> TrialRecord:
    """Return the record of a trial that failed at a step, whose artifact is at `place` now."""
    reason, fix = explain(error)
    texts = {"reason": reason, "fix": fix}  # without the name of a folder that is renamed
    plain = {key: text.replace(str(place), ARTIFACT) for key, text in texts.items()}
    return describe_trial(trial, "failed").model_copy(update={"step": step, **plain})
