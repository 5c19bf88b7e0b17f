"""The work of one sweep: run what is not finished, lengthen benches, judge again, and lay the trials side by side."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vitdeploy.commands.log.logs import NO_LOGS, Logs
from vitdeploy.commands.log.sweep_log import SweepLog
from vitdeploy.commands.sweep.axes import HERE, HOST
from vitdeploy.commands.sweep.budget import SHORT_SECONDS, choose_longer, estimate, expect_seconds, list_short
from vitdeploy.commands.sweep.definition import Definition, TrialSpec
from vitdeploy.commands.sweep.failures import digest_loading, explain, group_failures, raise_if_disk_is_full
from vitdeploy.commands.sweep.hosts import FindHost, HostPool, SweepHost, no_host
from vitdeploy.commands.sweep.later import judge_again, lengthen_bench
from vitdeploy.commands.sweep.record import describe_trial
from vitdeploy.commands.sweep.store import SweepFolder
from vitdeploy.commands.sweep.trial import ARTIFACT, TRIALS, Alone, Ended, Tools, repeat_failure, run_trial
from vitdeploy.errors import HostUnreachable, RemoteError
from vitdeploy.evidence import Picked, Sweep, SweepRow, TrialRecord
from vitdeploy.frozen import replace
from vitdeploy.measure.front import compare, describe_comparison
from vitdeploy.pipeline.graph_cache import GraphCache

Again = Callable[[TrialSpec, TrialRecord], TrialRecord]


@dataclass(frozen=True)
class SweepPlan:
    """The settings of one run of a sweep.

    Attributes:
        dry_run: only list the trials, and estimate the time.
        budget_s: the time to spend; None: all that it takes.
        retry: try failed trials again.
        pick: an expression that chooses a trial.
        to: the folder to copy the chosen trial's artifact to.
        force: replace an artifact at `to`.
        cache: the cache of exported graphs; None exports each time.
        alone: entered around each measurement of time.
        logs: where each trial is logged.
        ray: the address of a Ray cluster to run on; None: this machine.
        find_host: connects to a host that the file names.
    """

    dry_run: bool = False
    budget_s: float | None = None
    retry: bool = False
    pick: str | None = None
    to: Path | None = None
    force: bool = False
    cache: GraphCache | None = None
    alone: Alone = nullcontext
    logs: Logs = NO_LOGS
    ray: str | None = None
    find_host: FindHost = no_host


@dataclass
class SweepWork:
    """The trials of one run, the records so far, and why trials were not begun."""

    definition: Definition
    folder: SweepFolder
    tools: Tools
    plan: SweepPlan
    started: float
    log: SweepLog | None = None
    records: dict[str, TrialRecord] = field(init=False)
    reused: set[str] = field(init=False)
    put_off: dict[str, str] = field(init=False, default_factory=dict)
    hosts: HostPool = field(init=False)
    unloadable: dict[str, TrialRecord] = field(init=False, default_factory=dict)
    _reported: set[tuple[str, str]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.hosts = HostPool(self.definition.hosts)
        self.records = self.folder.read_records()
        if self.plan.retry:
            self.records = {name: record for name, record in self.records.items() if record.status != "failed"}
        self.reused = set(self.records)

    @property
    def names(self) -> set[str]:
        """The names of the trials of the matrix. Rows and records of other machines have others."""
        return {trial.name for trial in self.definition.trials}

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
        self.judge()

    def judge(self) -> None:
        """Judge the finished trials by the limits of today."""
        for trial in self.definition.trials:
            record = self.records.get(trial.name)
            limits = {key: value for key, value in trial.limits.model_dump().items() if value is not None}
            if record is not None and record.status in ("done", "bundle") and dict(record.limits) != limits:
                self.again(trial, self._judge)

    def _run_pending(self) -> None:
        """Run each pending trial that fits into the budget, one after the other."""
        pending = self.pending
        for number, trial in enumerate(pending, 1):
            if self.is_left_out(trial):
                continue
            self.tools.progress.relay(f"[{number}/{len(pending)}] {trial.title}")
            self._run_trial(trial)
        self.warn_of_rest()

    def _run_trial(self, trial: TrialSpec) -> None:
        """Run a trial here, or on the first of its hosts that answers."""
        folder, seconds = self.folder.path, self.bench_seconds(trial)
        if not trial.hosts:
            self.finish(trial, run_trial(trial, folder, self.tools, seconds))
            return
        while (host := self.hosts.find_free(trial.hosts)) is not None:
            try:
                self.finish(trial, run_trial(trial, folder, self.tools, seconds, self.prepare_host(trial, host)))
            except HostUnreachable as error:
                self.lose(host, error)
            else:
                return
        self.put_off[trial.name] = self.hosts.explain(trial.hosts)

    def prepare_host(self, trial: TrialSpec, host: SweepHost) -> SweepHost:
        """Return a host for the work on a trial."""
        return host.with_folder((self.folder.path / TRIALS / trial.name).absolute())

    def lose(self, host: SweepHost, error: HostUnreachable) -> None:
        """Go on without a host that does not answer any more."""
        self.hosts.lose(host, error)
        self.tools.progress.warn(f"{error.message}; the sweep goes on without {host.name}")

    def is_left_out(self, trial: TrialSpec) -> bool:
        """Return True if a trial is not begun: its model cannot be loaded, the budget is spent, or no host is left."""
        key = digest_loading(trial)
        if key in self.unloadable:
            self.records[trial.name] = repeat_failure(trial, self.folder.path, self.unloadable[key])
            return True
        if trial.hosts and not self.hosts.list_living(trial.hosts):
            self.put_off[trial.name] = self.hosts.explain(trial.hosts)
            return True
        return not self._fits(trial)

    def finish(self, trial: TrialSpec, ended: Ended) -> None:
        """Add the record of a trial that ran to the tables. Each reason of a failure is printed once."""
        record = self.records[trial.name] = ended.record
        if ended.unloadable:
            self.unloadable[digest_loading(trial)] = record
        if record.status == "failed" and (record.step, record.reason) not in self._reported:
            self._reported.add((record.step, record.reason))
            self.tools.progress.relay(f"failed at {record.step}: {record.reason}")
        self.publish()

    def warn_of_rest(self) -> None:
        """Say how many trials were not done, if any, and why."""
        lost = [trial for trial in self.definition.trials if trial.hosts and not self.hosts.list_living(trial.hosts)]
        without_host = self.put_off.keys() & {trial.name for trial in lost}
        if without_host:
            have = "1 trial has" if len(without_host) == 1 else f"{len(without_host)} trials have"
            self.tools.progress.warn(f"{have} no host that answers; the same command goes on")
        if beyond := self.put_off.keys() - without_host:
            self.tools.progress.warn(f"{len(beyond)} trials do not fit into the budget and were not begun")

    def _fits(self, trial: TrialSpec) -> bool:
        """Return True if a trial is expected to end within the budget; else note why it is not begun."""
        left = self.left_s
        expected = expect_seconds(trial, self.records.values(), self.bench_seconds(trial))
        if left <= 0:
            self.put_off[trial.name] = "the budget was spent before"
        elif expected > left:
            self.put_off[trial.name] = f"it takes about {expected:.0f} s, and {left:.0f} s of the budget were left"
        return trial.name not in self.put_off

    def bench_seconds(self, trial: TrialSpec) -> float:
        """Return the time of the first bench of a trial."""
        seconds = trial.recipe.bench.seconds
        return seconds if self.plan.budget_s is None else min(SHORT_SECONDS, seconds)

    @property
    def full_seconds(self) -> dict[str, float]:
        """The time that each bench should have had."""
        return {trial.name: trial.recipe.bench.seconds for trial in self.definition.trials}

    def _lengthen(self) -> None:
        """Give the recipe's time to each bench that may change the front."""
        trials = {trial.name: trial for trial in self.definition.trials}
        seconds = self.full_seconds
        while (name := choose_longer(self.rows(), seconds, self.left_s)) is not None:
            trial, duration = trials[name], seconds.pop(name)
            self.tools.progress.relay(f"a longer bench, {duration:g} s: {trial.title}")
            self.again(trial, partial(self._time_longer, duration))
            self.publish()

    def _time_longer(self, seconds: float, trial: TrialSpec, _: TrialRecord) -> TrialRecord:
        if not trial.hosts:
            return lengthen_bench(trial, self.folder.path, self.tools, seconds)
        while (host := self.hosts.find_free(trial.hosts)) is not None:
            try:
                return lengthen_bench(trial, self.folder.path, self.tools, seconds, self.prepare_host(trial, host))
            except HostUnreachable as error:
                self.lose(host, error)
        raise RemoteError(self.hosts.explain(trial.hosts), fix="Run the sweep again when the host answers.")

    def _judge(self, trial: TrialSpec, record: TrialRecord) -> TrialRecord:
        return judge_again(trial, self.folder.path, record)

    def again(self, trial: TrialSpec, work: Again) -> None:
        """Do more work on a finished trial. If it fails, the trial stays as it is.

        Raises:
            VitdeployError: the disk is full.
        """
        try:
            self.records[trial.name] = work(trial, self.records[trial.name])
        except Exception as error:  # noqa: BLE001  an engine may raise anything, and the other trials go on
            raise_if_disk_is_full(error, self.folder.path)
            with self.tools.progress.step(f"Keep {trial.name} as it is"):  # an interrupt that a library hid comes now
                reason, _ = explain(error)
            self.tools.progress.warn(f"{trial.name} stays as it is: {reason}")

    def publish(self) -> None:
        """Write the tables and the log of all trials as they are now."""
        rows = self.rows()
        self.folder.write_tables(rows)
        if self.log is not None:
            self.log.update(rows)

    def rows(self) -> list[SweepRow]:
        """Return all trials side by side: those of the matrix, then the same ones of other machines."""
        settings = {trial.setting for trial in self.definition.trials}
        names = self.names
        own = [
            _with_axes(self.records[trial.name], trial)
            if trial.name in self.records
            else replace(describe_trial(trial, "pending"), reason=self.put_off.get(trial.name, "it is not tried yet"))
            for trial in self.definition.trials
        ]
        here = self.tools.naming.machine
        others = [
            record
            for record in self.records.values()
            if record.name not in names and record.setting in settings and record.status == "done"
            and record.machine != here and record.axes.get(HOST, HERE) == HERE
        ]  # fmt: skip
        rows = compare([*own, *others])
        return [replace(row, reused=row.name in self.reused, artifact=self._artifact_of(row)) for row in rows]

    def _artifact_of(self, row: SweepRow) -> str:
        has_one = row.status in ("done", "bundle") or self.folder.artifact(row.name).is_dir()
        return f"{TRIALS}/{row.name}/{ARTIFACT}" if has_one and row.status != "pending" else ""

    def result(self, *, picked: Picked | None) -> Sweep:
        """Return the result so far."""
        rows = self.rows()
        benches = [] if self.plan.budget_s is not None else list_short(rows, self.full_seconds)
        longer = [self.full_seconds[row.name] for row in benches]
        return Sweep(
            sweep=str(self.folder.path),
            file=str(self.definition.file),
            dry_run=self.plan.dry_run,
            counts=dict(Counter(row.status for row in rows if row.name in self.names)),
            excluded=self.definition.excluded,
            trials=tuple(rows),
            failures=tuple(group_failures(rows)),
            estimate=estimate(self.pending, self.records, longer),
            notes=tuple(describe_comparison(rows)),
            picked=picked,
            seconds=round(time.monotonic() - self.started, 1),
        )


def _with_axes(record: TrialRecord, trial: TrialSpec) -> TrialRecord:
    """Return a stored record with the axes of today's matrix, which may be more than when it ran."""
    return replace(record, axes=trial.axes)
