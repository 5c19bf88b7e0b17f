"""A sweep on the nodes of a Ray cluster.

    prepare   export and evaluate    CPUs and memory of its request    shares the machine
    measure   the bench              all CPUs of a node                has the machine alone
    run_alone both                   all CPUs of a node                has the machine alone
    pass_to_host  what a host does   no CPU of the command's node      the host has a lock of its own

Which trials run, and in which order, is decided as for one machine (`SweepWork`); where they run, by Ray. While a
measurement waits or runs, no more exports are out than leave a node for each measurement: Ray gives free CPUs to
whatever fits first, so that otherwise no node might ever be free as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from vitdeploy import machine_lock
from vitdeploy.artifact.parcel import Parcel, pack
from vitdeploy.cluster import Cluster, NodeCall
from vitdeploy.commands.sweep.budget import choose_longer
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.commands.sweep.failures import raise_if_disk_is_full
from vitdeploy.commands.sweep.host_queue import HostQueue, list_settings, refuse_idle_node, request_own_node
from vitdeploy.commands.sweep.hosts import SweepHost
from vitdeploy.commands.sweep.on_node import Assignment, Delivery, measure, pass_to_host, prepare, run_alone
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
from vitdeploy.errors import HostUnreachable, MeasureError, RemoteError, VitdeployError
from vitdeploy.evidence import TrialRecord

_PATIENCE_S = 20.0
"""The time that work on hosts has to end the jobs there after Ctrl-C."""


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of a trial that is out: its host, what to do with its result, and with the error in its place."""

    trial: TrialSpec
    alone: bool
    host: SweepHost | None
    take: Callable[[Delivery], None]
    fail: Callable[[Exception], None]


@dataclass
class ClusterRun:
    """One run of a sweep on a cluster: the parts of trials that are out, those that wait for a host, and answers."""

    work: SweepWork
    cluster: Cluster
    places: Places
    _out: dict[NodeCall[Delivery], _Part] = field(init=False, default_factory=dict)
    _queue: HostQueue = field(init=False)
    _references: dict[str, object] = field(init=False, default_factory=dict)
    _loading: set[str] = field(init=False, default_factory=set)
    _loaded: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._queue = HostQueue(self.work)

    def run(self) -> None:
        """Run what is pending, then lengthen the benches that are worth it, then judge by the limits of today.

        Raises:
            VitdeployError: a disk is full, no node is left, or the connection is lost. Finished trials stay.
        """
        if self.work.definition.hosts:
            refuse_idle_node(self.cluster)
        for file in sorted((self.work.folder.path / REFERENCES).glob("[!.]*.npz")):
            self._references[file.name] = self.cluster.share(file.read_bytes())
        try:
            self._run_pending()
            self._lengthen()
        finally:
            there = [call for call, part in self._out.items() if part.host is not None]
            self.cluster.cancel(self._out.keys() - set(there))
            self.cluster.interrupt(there, _PATIENCE_S)
            self.cluster.cancel(there)
        self.work.judge()

    def _run_pending(self) -> None:
        pending = self.work.pending
        total, begun, progress = len(pending), 0, self.work.tools.progress
        while pending or self._out or self._queue:
            self._pass_on()
            while (trial := self._choose(pending)) is not None:
                pending.remove(trial)
                if self.work.is_left_out(trial):
                    continue
                begun += 1
                progress.relay(f"[{begun}/{total}] {trial.title}")
                self._begin(trial)
            if self._out:
                self._wait()
            elif pending and not self._queue:  # every node has died
                self.places.refuse_none_left(self.cluster)
        self.work.warn_of_rest()

    def _choose(self, pending: list[TrialSpec]) -> TrialSpec | None:
        """Return the next trial that can begin; None if no node is free for it.

        The first trial of a model goes ahead: it shows if the model can be loaded, and brings the reference's answers.
        """
        measuring = sum(part.alone for part in self._out.values())
        preparing = sum(part.host is None for part in self._out.values()) - measuring
        largest = self.places.count_largest(self.cluster)
        exporting = [part.trial for part in self._out.values() if part.host is None and not part.alone]
        for trial in pending:
            if _digest_model(trial) in self._loading or self._queue.is_full(trial, exporting):
                continue
            if compares_times(trial):
                return trial if measuring + preparing < largest else None
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
            host = next(iter(self.work.hosts.list_living(trial.hosts)), None)
            self._start(trial, prepare, take=take, fail=fail, host=host)

    def _start(
        self,
        trial: TrialSpec,
        function: Callable[..., Delivery],
        *arguments: object,
        take: Callable[[Delivery], None],
        fail: Callable[[Exception], None],
        host: SweepHost | None = None,
    ) -> None:
        cached = self.work.plan.cache is not None
        assignment = Assignment(
            trial, self.work.tools.naming.machine, self.places.names, cached, dict(self._references), host
        )
        is_there = function is pass_to_host
        alone = function is not prepare and not is_there
        shared = request_own_node() if is_there else self.places.shared
        request = self.places.alone if alone else shared
        call = self.cluster.start(function, assignment, *arguments, request=request)
        self._out[call] = _Part(trial, alone, host if is_there else None, take, fail)

    def _wait(self) -> None:
        """Wait until parts have ended, and store what they brought.

        Raises:
            VitdeployError: a disk is full, or no node is left.
        """
        for call in self.cluster.wait(list(self._out)):
            part = self._out.pop(call)
            if part.host is not None:
                self.work.hosts.release(part.host)
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
        if trial.hosts and record.status == "bundle":
            self._queue.add(trial, delivery)
        elif record.status == "done" and record.timed is None:
            self._start(
                trial, measure, self.work.bench_seconds(trial), self.cluster.share(delivery.files),
                take=partial(self._take_finished, trial, delivery.files),
                fail=partial(self._fail_bench, trial, delivery.files),
            )  # fmt: skip
        else:
            self._store(trial, delivery.ended, delivery.files)
        for name, contents in new.items():
            with machine_lock.shared():
                store_reference(self.work.folder.path / REFERENCES / name, contents)

    def _pass_on(self) -> None:
        """Give trials that are exported to hosts that are free."""
        for trial, delivery, host in self._queue.take():
            self._start_there(
                trial, host, self.work.bench_seconds(trial), self.cluster.share(delivery.files),
                take=partial(self._take_finished, trial, delivery.files),
                fail=partial(self._fail_there, trial, host, delivery),
            )  # fmt: skip

    def _start_there(
        self,
        trial: TrialSpec,
        host: SweepHost,
        seconds: float,
        folder: object,
        *,
        take: Callable[[Delivery], None],
        fail: Callable[[Exception], None],
    ) -> None:
        at_work = self.work.prepare_host(trial, host)
        self._start(trial, pass_to_host, seconds, folder, list_settings(), take=take, fail=fail, host=at_work)

    def _take_finished(self, trial: TrialSpec, exported: Parcel, delivery: Delivery) -> None:
        self._store(trial, delivery.ended, exported, delivery.files)

    def _fail_there(self, trial: TrialSpec, host: SweepHost, exported: Delivery, error: Exception) -> None:
        if isinstance(error, HostUnreachable):
            self.work.lose(host, error)
            self._queue.add(trial, exported)
        else:
            self._fail_bench(trial, exported.files, error)

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
            while (name := choose_longer(self.work.rows(), self._list_able(seconds), self.work.left_s)) is not None:
                self._time_again(trials[name], seconds.pop(name))
            if not self._out:
                return
            self._wait()
            self.work.publish()

    def _list_able(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Return those of some trials that can be timed now: a host of theirs is free, or a node."""
        here = sum(part.host is None for part in self._out.values()) < self.places.count_largest(self.cluster)
        free = {
            trial.name: self.work.hosts.find_free(trial.hosts) is not None if trial.hosts else here
            for trial in self.work.definition.trials
        }
        return {name: duration for name, duration in seconds.items() if free[name]}

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
            if isinstance(error, HostUnreachable) and host is not None:
                self.work.lose(host, error)
            raise error

        host, packed = self.work.hosts.find_free(trial.hosts), self.cluster.share(pack(folder))

        def take(delivery: Delivery) -> None:
            self.work.again(trial, partial(store, delivery))

        def fail(error: Exception) -> None:
            self.work.again(trial, partial(refuse, error))

        if host is None:
            self._start(trial, measure, seconds, packed, take=take, fail=fail)
        else:
            self.work.hosts.take(host)
            self._start_there(trial, host, seconds, packed, take=take, fail=fail)


def _digest_model(trial: TrialSpec) -> str:
    """Return what decides the answers of the reference, of the facts in the description of a trial."""
    recipe = trial.recipe
    parts = (recipe.model, recipe.preprocess, recipe.task)
    return "\n".join("" if part is None else part.model_dump_json() for part in parts)
