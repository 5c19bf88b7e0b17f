"""A sweep on the nodes of a Ray cluster.

    prepare   export and evaluate    CPUs and memory of its request    shares the machine
    measure   the bench              all CPUs of a node                has the machine alone
    run_alone both                   all CPUs of a node                has the machine alone

Which trials run, and in which order, is decided as for one machine (`SweepWork`); where they run, by Ray. While a
measurement waits or runs, no more exports are out than leave a node for each measurement: Ray gives free CPUs to
whatever fits first, so that otherwise no node might ever be free as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from vitdeploy import machine_lock
from vitdeploy.artifact.parcel import Parcel, pack
from vitdeploy.cluster import Cluster, NodeCall
from vitdeploy.commands.sweep.budget import choose_longer
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.commands.sweep.failures import raise_if_disk_is_full
from vitdeploy.commands.sweep.on_node import Assignment, Delivery, measure, prepare, run_alone
from vitdeploy.commands.sweep.places import Places
from vitdeploy.commands.sweep.references import store_reference
from vitdeploy.commands.sweep.trial import (
    RECORD,
    REFERENCES,
    TRIALS,
    Ended,
    compares_times,
    fail_bench,
    fail_trial,
    trial_folder,
)
from vitdeploy.commands.sweep.work import SweepWork
from vitdeploy.errors import MeasureError, RemoteError, VitdeployError
from vitdeploy.evidence import TrialRecord


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of a trial that is out: what to do with its result, and with the error in its place."""

    trial: TrialSpec
    alone: bool
    take: Callable[[Delivery], None]
    fail: Callable[[Exception], None]


@dataclass
class ClusterRun:
    """One run of a sweep on a cluster: the parts of trials that are out, and answers of the reference."""

    work: SweepWork
    cluster: Cluster
    places: Places
    _out: dict[NodeCall[Delivery], _Part] = field(init=False, default_factory=dict)
    _references: dict[str, object] = field(init=False, default_factory=dict)
    _loading: set[str] = field(init=False, default_factory=set)
    _loaded: set[str] = field(init=False, default_factory=set)

    def run(self) -> None:
        """Run what is pending, then lengthen the benches that are worth it, then judge by the limits of today.

        Raises:
            VitdeployError: a disk is full, no node is left, or the connection is lost. Finished trials stay.
        """
        for file in sorted((self.work.folder.path / REFERENCES).glob("[!.]*.npz")):
            self._references[file.name] = self.cluster.share(file.read_bytes())
        try:
            self._run_pending()
            self._lengthen()
        finally:
            self.cluster.cancel(self._out)
        self.work.judge()

    def _run_pending(self) -> None:
        pending = self.work.pending
        total, begun, progress = len(pending), 0, self.work.tools.progress
        while pending or self._out:
            while (trial := self._choose(pending)) is not None:
                pending.remove(trial)
                if self.work.is_left_out(trial):
                    continue
                begun += 1
                progress.relay(f"[{begun}/{total}] {trial.title}")
                self._begin(trial)
            if self._out:
                self._wait()
            elif pending:  # every node has died
                self.places.refuse_none_left(self.cluster)
        self.work.warn_of_budget()

    def _choose(self, pending: list[TrialSpec]) -> TrialSpec | None:
        """Return the next trial that can begin; None if no node is free for it.

        The first trial of a model goes ahead: it shows if the model can be loaded, and brings the reference's answers.
        """
        measuring = sum(part.alone for part in self._out.values())
        preparing = len(self._out) - measuring
        largest = self.places.count_largest(self.cluster)
        for trial in pending:
            if _digest_model(trial) in self._loading:
                continue
            if compares_times(trial):
                return trial if len(self._out) < largest else None
            most = largest - measuring if measuring else self.cluster.count_slots(self.places.shared)
            return trial if preparing < most else None
        return None

    def _begin(self, trial: TrialSpec) -> None:
        model = _digest_model(trial)
        if model not in self._loaded:
            self._loading.add(model)
        take, fail = partial(self._take_prepared, trial), partial(self._fail_export, trial)
        if compares_times(trial):
            self._start(trial, run_alone, self.work.bench_seconds(trial), take=take, fail=fail)
        else:
            self._start(trial, prepare, take=take, fail=fail)

    def _start(
        self,
        trial: TrialSpec,
        function: Callable[..., Delivery],
        *arguments: object,
        take: Callable[[Delivery], None],
        fail: Callable[[Exception], None],
    ) -> None:
        cached = self.work.plan.cache is not None
        assignment = Assignment(
            trial, self.work.tools.naming.machine, self.places.names, cached, dict(self._references)
        )
        alone = function is not prepare
        request = self.places.alone if alone else self.places.shared
        call = self.cluster.start(function, assignment, *arguments, request=request)
        self._out[call] = _Part(trial, alone, take, fail)

    def _wait(self) -> None:
        """Wait until parts have ended, and store what they brought.

        Raises:
            VitdeployError: a disk is full, or no node is left.
        """
        for call in self.cluster.wait(list(self._out)):
            part = self._out.pop(call)
            try:
                delivery = self.cluster.collect(call)
                for line in delivery.warnings:
                    self.work.tools.progress.warn(f"{part.trial.title}: {line}")
                part.take(delivery)
            except VitdeployError as error:
                if not isinstance(error, RemoteError):
                    raise  # of all errors of a trial only a full disk gets here
                part.fail(error)
            except Exception as error:  # noqa: BLE001  the other trials go on, whatever happened to this one
                raise_if_disk_is_full(error, self.work.folder.path)
                part.fail(error)

    def _take_prepared(self, trial: TrialSpec, delivery: Delivery) -> None:
        """Send a trial that was exported on to its bench; store it, if none is left."""
        new = {name: contents for name, contents in delivery.references.items() if name not in self._references}
        self._references |= {name: self.cluster.share(contents) for name, contents in new.items()}
        self._release(trial)
        record = delivery.ended.record
        if record.status == "done" and record.timed is None:
            self._start(
                trial, measure, self.work.bench_seconds(trial), self.cluster.share(delivery.files),
                take=lambda timed: self._store(trial, timed.ended, delivery.files, timed.files),
                fail=partial(self._fail_bench, trial, delivery.files),
            )  # fmt: skip
        else:
            self._store(trial, delivery.ended, delivery.files)
        for name, contents in new.items():
            with machine_lock.shared():
                store_reference(self.work.folder.path / REFERENCES / name, contents)

    def _release(self, trial: TrialSpec) -> None:
        model = _digest_model(trial)
        self._loading.discard(model)
        self._loaded.add(model)

    def _store(self, trial: TrialSpec, ended: Ended, *parcels: Parcel) -> None:
        """Store the folder of a trial, in which later files replace earlier ones."""
        with machine_lock.shared(), trial_folder(self.work.folder.path, trial.name) as folder:
            for parcel in parcels:
                parcel.unpack(folder)
        self.work.finish(trial, ended)

    def _fail_export(self, trial: TrialSpec, error: Exception) -> None:
        self._release(trial)
        self.work.finish(trial, Ended(fail_trial(trial, self.work.folder.path, "export", error)))

    def _fail_bench(self, trial: TrialSpec, exported: Parcel, error: Exception) -> None:
        with machine_lock.shared(), trial_folder(self.work.folder.path, trial.name) as folder:
            exported.unpack(folder)
            record = fail_bench(trial, folder, error)
        self.work.finish(trial, Ended(record))

    def _lengthen(self) -> None:
        """Give the recipe's time to each bench that may change the front, on as many nodes as there are."""
        trials = {trial.name: trial for trial in self.work.definition.trials}
        seconds = self.work.full_seconds
        while True:
            while len(self._out) < self.places.count_largest(self.cluster):
                name = choose_longer(self.work.rows(), seconds, self.work.left_s)
                if name is None:
                    break
                self._time_again(trials[name], seconds.pop(name))
            if not self._out:
                return
            self._wait()
            self.work.publish()

    def _time_again(self, trial: TrialSpec, seconds: float) -> None:
        progress, folder = self.work.tools.progress, self.work.folder.path / TRIALS / trial.name
        progress.relay(f"a longer bench, {seconds:g} s: {trial.title}")

        def store(delivery: Delivery, *_: object) -> TrialRecord:
            record = delivery.ended.record
            if record.status == "failed":
                raise MeasureError(record.reason, fix=record.fix)
            with machine_lock.shared():
                delivery.files.replace_in(folder, last=RECORD)
            return record

        def refuse(error: Exception, *_: object) -> TrialRecord:
            raise error

        self._start(
            trial, measure, seconds, self.cluster.share(pack(folder)),
            take=lambda delivery: self.work.again(trial, partial(store, delivery)),
            fail=lambda error: self.work.again(trial, partial(refuse, error)),
        )  # fmt: skip


def _digest_model(trial: TrialSpec) -> str:
    """Return what decides the answers of the reference, of the facts in the description of a trial."""
    recipe = trial.recipe
    parts = (recipe.model, recipe.preprocess, recipe.task)
    return "\n".join("" if part is None else part.model_dump_json() for part in parts)
