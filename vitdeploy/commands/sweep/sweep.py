"""`vitdeploy sweep`: run the trials of a matrix that are not finished yet, and show all of them side by side."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import environment
from vitdeploy.commands.report.report import is_available
from vitdeploy.commands.sweep.budget import SHORT_SECONDS, choose_longer, estimate, list_short
from vitdeploy.commands.sweep.definition import Definition, TrialSpec, read_definition
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.commands.sweep.pick import Expression, parse_pick, pick
from vitdeploy.commands.sweep.record import describe_trial
from vitdeploy.commands.sweep.store import CSV, JSONL, PAGE, SweepFolder
from vitdeploy.commands.sweep.trial import (
    ARTIFACT,
    TRIALS,
    Alone,
    Tools,
    judge_again,
    lengthen_bench,
    repeat_failure,
    run_trial,
)
from vitdeploy.errors import UsageError, VitdeployError
from vitdeploy.evidence import Picked, Sweep, SweepFailure, SweepRow, TrialRecord
from vitdeploy.frozen import replace
from vitdeploy.measure.front import compare, describe_comparison
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Progress

_Again = Callable[[TrialSpec, TrialRecord], TrialRecord]


@dataclass(frozen=True)
class SweepPlan:
    """How a sweep is run.

    Attributes:
        dry_run: only list the trials, and estimate the time.
        budget_s: the time to spend; None: all that it takes.
        retry: try failed trials again.
        pick: an expression that chooses a trial.
        to: the folder to copy the chosen trial's artifact to.
        force: replace an artifact at `to`.
        cache: the cache of exported graphs; None exports each time.
        alone: entered around each measurement of time.
    """

    dry_run: bool = False
    budget_s: float | None = None
    retry: bool = False
    pick: str | None = None
    to: Path | None = None
    force: bool = False
    cache: GraphCache | None = None
    alone: Alone = nullcontext


def sweep(file: Path, out: Path | None, progress: Progress, plan: SweepPlan) -> Sweep:
    """Run a sweep, or go on with it.

    Args:
        file: the sweep file.
        out: the folder of the sweep; None: named after the file.
        progress: gets the steps and warnings.
        plan: how it is run.

    Raises:
        RecipeError, SourceError: the file is not valid.
        UsageError: the folder is not that of a sweep, `--pick` is not valid, or nothing passes it.
        ArtifactError: the folder cannot be written, or the disk is full. Finished trials stay.
    """
    started = time.monotonic()
    expression = None if plan.pick is None else parse_pick(plan.pick)
    if plan.to is not None and expression is None:
        raise UsageError("--to is the place of the trial that --pick chooses", fix="Give --pick too.")
    if plan.to is not None and not plan.dry_run:
        artifacts.refuse_existing(plan.to, force=plan.force)
    naming = Naming()
    definition = read_definition(file, naming)
    folder = SweepFolder(out or Path(file.stem))
    folder.check()
    work = _Work(definition, folder, Tools(progress, naming, plan.cache, plan.alone), plan, started)
    if plan.dry_run:
        return work.result(picked=None)
    with folder.locked(file):
        try:
            work.run()
        finally:  # an interrupt too leaves tables of what is finished
            folder.write_tables(work.rows())
        return _finish(work, expression)


def _finish(work: _Work, expression: Expression | None) -> Sweep:
    """Write the page, and copy the chosen trial out."""
    result = work.result(picked=None)
    page = _write_page(result, work.folder, work.tools.progress)
    picked = None if expression is None else _copy_best(expression, result.trials, work)
    return replace(
        result,
        picked=picked,
        page=page,
        csv=str(work.folder.path / CSV),
        jsonl=str(work.folder.path / JSONL),
        seconds=round(time.monotonic() - work.started, 1),
    )


@dataclass
class _Work:
    """The trials of one run, and the records so far."""

    definition: Definition
    folder: SweepFolder
    tools: Tools
    plan: SweepPlan
    started: float
    records: dict[str, TrialRecord] = field(init=False)
    reused: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.records = self.folder.read_records()
        if self.plan.retry:
            self.records = {name: record for name, record in self.records.items() if record.status != "failed"}
        self.reused = set(self.records)

    @property
    def pending(self) -> list[TrialSpec]:
        """The trials without a record."""
        return [trial for trial in self.definition.trials if trial.name not in self.records]

    @property
    def left_s(self) -> float:
        """The rest of the budget."""
        if self.plan.budget_s is None:
            return math.inf
        return self.plan.budget_s - (time.monotonic() - self.started)

    def run(self) -> None:
        """Run what is pending, then lengthen the benches that are worth it, then judge by the limits of today."""
        self._run_pending()
        self._lengthen()
        for trial in self.definition.trials:
            record = self.records.get(trial.name)
            limits = {key: value for key, value in trial.limits.model_dump().items() if value is not None}
            if record is not None and record.status in ("done", "bundle") and dict(record.limits) != limits:
                self._again(trial, self._judge)

    def _run_pending(self) -> None:
        unloadable: dict[str, TrialRecord] = {}
        pending = self.pending
        for number, trial in enumerate(pending, 1):
            if self.left_s <= 0:
                self.tools.progress.warn(f"the budget is spent: {len(pending) - number + 1} trials are not tried")
                return
            key = _digest_model(trial)
            self.tools.progress.relay(f"[{number}/{len(pending)}] {trial.title}")
            if key in unloadable:
                self.records[trial.name] = repeat_failure(trial, self.folder.path, unloadable[key])
                continue
            ended = run_trial(trial, self.folder.path, self.tools, self._bench_seconds(trial))
            self.records[trial.name] = ended.record
            if ended.unloadable:
                unloadable[key] = ended.record
            if ended.record.status == "failed":
                self.tools.progress.relay(f"failed at {ended.record.step}: {ended.record.reason}")
            self.folder.write_tables(self.rows())

    def _bench_seconds(self, trial: TrialSpec) -> float:
        seconds = trial.recipe.bench.seconds
        return seconds if self.plan.budget_s is None else min(SHORT_SECONDS, seconds)

    @property
    def _seconds(self) -> dict[str, float]:
        """The time that each bench should have had."""
        return {trial.name: trial.recipe.bench.seconds for trial in self.definition.trials}

    def _lengthen(self) -> None:
        """Give the recipe's time to each bench that may change the front."""
        trials = {trial.name: trial for trial in self.definition.trials}
        seconds = self._seconds
        while (name := choose_longer(self.rows(), seconds, self.left_s)) is not None:
            trial, wanted = trials[name], seconds.pop(name)
            self.tools.progress.relay(f"a longer bench, {wanted:g} s: {trial.title}")
            self._again(trial, partial(self._time_longer, wanted))
            self.folder.write_tables(self.rows())

    def _time_longer(self, seconds: float, trial: TrialSpec, _: TrialRecord) -> TrialRecord:
        return lengthen_bench(trial, self.folder.path, self.tools, seconds)

    def _judge(self, trial: TrialSpec, record: TrialRecord) -> TrialRecord:
        return judge_again(trial, self.folder.path, record)

    def _again(self, trial: TrialSpec, work: _Again) -> None:
        """Do more work on a finished trial. If it fails, the trial stays as it is."""
        try:
            self.records[trial.name] = work(trial, self.records[trial.name])
        except VitdeployError as error:
            self.tools.progress.warn(f"{trial.name} stays as it is: {error.message}")

    def rows(self) -> list[SweepRow]:
        """Return all trials side by side: those of the matrix, then the same ones of other machines."""
        settings = {trial.setting for trial in self.definition.trials}
        names = {trial.name for trial in self.definition.trials}
        waiting = "it is not tried yet" if self.left_s > 0 else "the budget was spent before"
        own = [
            _with_axes(self.records[trial.name], trial)
            if trial.name in self.records
            else replace(describe_trial(trial, "pending"), reason=waiting)
            for trial in self.definition.trials
        ]
        here = environment.host().machine
        others = [
            record
            for record in self.records.values()
            if record.name not in names and record.setting in settings and record.status == "done"
            and record.machine != here
        ]  # fmt: skip
        rows = compare([*own, *others])
        return [replace(row, reused=row.name in self.reused, artifact=self._artifact_of(row)) for row in rows]

    def _artifact_of(self, row: SweepRow) -> str:
        has_one = row.status in ("done", "bundle") or self.folder.artifact(row.name).is_dir()
        return f"{TRIALS}/{row.name}/{ARTIFACT}" if has_one and row.status != "pending" else ""

    def result(self, *, picked: Picked | None) -> Sweep:
        """Return the result so far."""
        rows = self.rows()
        benches = [] if self.plan.budget_s is not None else list_short(rows, self._seconds)
        longer = [self._seconds[row.name] for row in benches]
        return Sweep(
            sweep=str(self.folder.path),
            file=str(self.definition.file),
            dry_run=self.plan.dry_run,
            counts=dict(Counter(row.status for row in rows)),
            excluded=self.definition.excluded,
            trials=tuple(rows),
            failures=tuple(_group_failures(rows)),
            estimate=estimate(self.pending, self.records, longer),
            notes=tuple(describe_comparison(rows)),
            picked=picked,
            seconds=round(time.monotonic() - self.started, 1),
        )


def _with_axes(record: TrialRecord, trial: TrialSpec) -> TrialRecord:
    """Return a stored record with the axes of today's matrix, which may be more than when it ran."""
    return replace(record, axes=trial.axes)


def _digest_model(trial: TrialSpec) -> str:
    """Return the digest of what decides whether the model of a trial can be loaded."""
    preprocess = trial.recipe.preprocess
    facts = [trial.recipe.model.model_dump_json(), "" if preprocess is None else preprocess.model_dump_json()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _group_failures(rows: Sequence[SweepRow]) -> list[SweepFailure]:
    """Return each reason once, with the trials that failed for it."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.status == "failed":
            groups.setdefault((row.step, row.reason, row.fix), []).append(row.name)
    return [
        SweepFailure(step=step, reason=reason, fix=fix, trials=tuple(t)) for (step, reason, fix), t in groups.items()
    ]


def _write_page(result: Sweep, folder: SweepFolder, progress: Progress) -> str | None:
    if not is_available():
        progress.warn(f"no {PAGE}: pip install 'vitdeploy[report]', then run the sweep again; nothing is done twice")
        return None
    from vitdeploy.render.html.sweep import render_sweep

    folder.write({PAGE: render_sweep(result)})
    return str(folder.path / PAGE)


def _copy_best(expression: Expression, rows: Sequence[SweepRow], work: _Work) -> Picked:
    """Choose a trial, and copy its artifact with its evidence.

    Raises:
        UsageError: no valid trial passes the conditions.
        ArtifactError: the place cannot be written, or the artifact is damaged.
    """
    best, notes = pick(expression, rows)
    to = work.plan.to or work.folder.path / "picked"
    force = work.plan.force or work.plan.to is None
    source = work.folder.artifact(best.name)
    artifacts.load(source)
    with artifacts.atomic_folder(to, force=force) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    value = expression.value(best)
    assert value is not None
    return Picked(
        expression=expression.text,
        trial=best.name,
        metric=expression.name,
        value=value,
        path=str(to),
        notes=tuple(notes),
    )
