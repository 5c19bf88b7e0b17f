"""A sweep on the nodes of a Ray cluster: what to do next with each trial.

Which trials run, and in which order, is decided as for one machine (`SweepWork`); where they run, by Ray. While a
measurement waits or runs, no more exports are out than leave a node for each measurement: Ray gives free CPUs to
whatever fits first, so that otherwise no node might ever be free as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from vitdeploy import machine_lock
from vitdeploy.artifact.parcel import Parcel, pack
from vitdeploy.cluster import Cluster
from vitdeploy.commands.sweep.budget import choose_longer
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.commands.sweep.host_queue import HostQueue, list_settings, refuse_idle_node
from vitdeploy.commands.sweep.hosts import SweepHost
from vitdeploy.commands.sweep.later import fail_step
from vitdeploy.commands.sweep.on_node import (
    Delivery,
    PartDelivery,
    answer_part,
    join_parts,
    measure,
    pass_to_host,
    prepare,
    run_alone,
)
from vitdeploy.commands.sweep.parts_out import Fail, PartsOut, Take
from vitdeploy.commands.sweep.places import Places
from vitdeploy.commands.sweep.postponed import PartAnswers, Postponed
from vitdeploy.commands.sweep.references import store_reference
from vitdeploy.commands.sweep.trial import RECORD, REFERENCES, TRIALS, Ended, compares_times, fail_trial, trial_folder
from vitdeploy.commands.sweep.work import SweepWork
from vitdeploy.errors import HostUnreachable, MeasureError
from vitdeploy.evidence import TrialRecord


@dataclass
class _Whole:
    """An evaluation in parts: the trial's folder, the same in the object store, and the answers that have come."""

    exported: Parcel
    shared: object
    count: int
    answers: dict[int, PartAnswers] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class ClusterRun:
    """One run of a sweep on a cluster."""

    work: SweepWork
    cluster: Cluster
    places: Places
    _out: PartsOut = field(init=False)
    _queue: HostQueue = field(init=False)
    _loading: set[str] = field(init=False, default_factory=set)
    _loaded: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._out = PartsOut(self.work, self.cluster, self.places)
        self._queue = HostQueue(self.work)

    def run(self) -> None:
        """Run what is pending, then lengthen the benches that are worth it, then judge by the limits of today.

        Raises:
            VitdeployError: a disk is full, no node is left, or the connection is lost. Finished trials stay.
        """
        if self.work.definition.hosts:
            refuse_idle_node(self.cluster)
        for file in sorted((self.work.folder.path / REFERENCES).glob("[!.]*.npz")):
            self._out.references[file.name] = self.cluster.share(file.read_bytes())
        try:
            self._run_pending()
            self._lengthen()
        finally:
            self._out.end()
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
                self._out.wait()
            elif pending and not self._queue:  # every node has died
                self.places.refuse_none_left(self.cluster)
        self.work.warn_of_rest()

    def _choose(self, pending: list[TrialSpec]) -> TrialSpec | None:
        """Return the next trial that can begin; None if no node is free for it.

        The first trial of a model goes ahead: it shows if the model can be loaded, and brings the reference's answers.
        """
        exporting = {trial.name: trial for trial in self._out.sharing}.values()
        for trial in pending:
            if _digest_model(trial) in self._loading or self._queue.is_full(trial, exporting):
                continue
            free = self._out.count_free_nodes() if compares_times(trial) else self._out.count_free()
            return trial if free > 0 else None
        return None

    def _begin(self, trial: TrialSpec) -> None:
        model = _digest_model(trial)
        if model not in self._loaded:
            self._loading.add(model)
        take, fail = partial(self._take_prepared, trial), partial(self._fail_export, trial)
        if compares_times(trial):
            self._out.start(trial, run_alone, self.work.bench_seconds(trial), take=take, fail=fail)
        else:
            host = next(iter(self.work.hosts.list_living(trial.hosts)), None)
            self._out.start(trial, prepare, take=take, fail=fail, host=host)

    def _take_prepared(self, trial: TrialSpec, delivery: Delivery) -> None:
        """Send a trial that was exported on to its evaluation in parts, its host or its bench; or store it."""
        if delivery.ended.postponed is not None:
            self._split(trial, delivery.files, delivery.ended.postponed)
            return
        new = {name: contents for name, contents in delivery.references.items() if name not in self._out.references}
        self._out.references |= {name: self.cluster.share(contents) for name, contents in new.items()}
        self._release(trial)
        record = delivery.ended.record
        if trial.hosts and record.status == "bundle":
            self._queue.add(trial, delivery)
        elif record.status == "done" and record.timed is None:
            self._out.start(
                trial, measure, self.work.bench_seconds(trial), self.cluster.share(delivery.files),
                take=partial(self._take_finished, trial, delivery.files),
                fail=partial(self._fail_step, trial, delivery.files, "bench"),
            )  # fmt: skip
        else:
            self._store(trial, delivery.ended, delivery.files)
        for name, contents in new.items():
            with machine_lock.shared():
                store_reference(self.work.folder.path / REFERENCES / name, contents)

    def _split(self, trial: TrialSpec, exported: Parcel, postponed: Postponed) -> None:
        """Let as many nodes as are free evaluate a trial, each a part of the data."""
        places = postponed.split(self._out.count_free_for_parts())
        whole = _Whole(exported, self.cluster.share(exported), len(places))
        for number, place in enumerate(places):
            self._out.start(
                trial, answer_part, whole.shared, place, postponed.count,
                take=partial(self._take_part, trial, whole, number), fail=partial(self._fail_part, trial, whole),
            )  # fmt: skip

    def _take_part(self, trial: TrialSpec, whole: _Whole, number: int, delivery: PartDelivery) -> None:
        if delivery.answers is None:
            reason, fix = delivery.failure
            self._fail_part(trial, whole, MeasureError(reason, fix=fix))
            return
        whole.seconds += delivery.seconds
        whole.answers[number] = delivery.answers
        if len(whole.answers) == whole.count:
            answers = [whole.answers[place] for place in range(whole.count)]
            self._out.start(
                trial, join_parts, whole.shared, answers, whole.seconds,
                take=partial(self._take_joined, trial, whole), fail=partial(self._fail_part, trial, whole),
            )  # fmt: skip

    def _take_joined(self, trial: TrialSpec, whole: _Whole, delivery: Delivery) -> None:
        self._take_prepared(trial, replace(delivery, files=whole.exported.merge(delivery.files)))

    def _fail_part(self, trial: TrialSpec, whole: _Whole, error: Exception) -> None:
        self._out.end_trial(trial)
        self._release(trial)
        self._fail_step(trial, whole.exported, "eval", error)

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
        take: Take,
        fail: Fail,
    ) -> None:
        own = self.work.prepare_host(trial, host)
        self._out.start(trial, pass_to_host, seconds, folder, list_settings(), take=take, fail=fail, host=own)

    def _take_finished(self, trial: TrialSpec, exported: Parcel, delivery: Delivery) -> None:
        self._store(trial, delivery.ended, exported, delivery.files)

    def _fail_there(self, trial: TrialSpec, host: SweepHost, exported: Delivery, error: Exception) -> None:
        if isinstance(error, HostUnreachable):
            self.work.lose(host, error)
            self._queue.add(trial, exported)
        else:
            self._fail_step(trial, exported.files, "bench", error)

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
        self._out.end_trial(trial)
        self._release(trial)
        self.work.finish(trial, Ended(fail_trial(trial, self.work.folder.path, "export", error)))

    def _fail_step(self, trial: TrialSpec, exported: Parcel, step: str, error: Exception) -> None:
        with machine_lock.shared(), trial_folder(self.work.folder.path, trial.name) as folder:
            exported.unpack(folder)
            record = fail_step(trial, folder, step, error)
        self.work.finish(trial, Ended(record))

    def _lengthen(self) -> None:
        """Give the recipe's time to each bench that may change the front, on as many nodes as there are."""
        trials = {trial.name: trial for trial in self.work.definition.trials}
        seconds = self.work.full_seconds
        while True:
            while (name := choose_longer(self.work.rows(), self._list_able(seconds), self.work.left_s)) is not None:
                self._time_again(trials[name], seconds)
            if not self._out:
                return
            self._out.wait()
            self.work.publish()

    def _list_able(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Return those of some trials that can be timed now: a host of theirs is free, or a node."""
        here = self._out.count_free_nodes() > 0 or not self._out  # the start of one says that no node is left
        free = {
            trial.name: self.work.hosts.find_free(trial.hosts) is not None if trial.hosts else here
            for trial in self.work.definition.trials
        }
        return {name: duration for name, duration in seconds.items() if free[name]}

    def _time_again(self, trial: TrialSpec, waiting: dict[str, float]) -> None:
        """Time one of the trials that wait for a longer bench. It waits again if its host is lost."""
        progress, folder = self.work.tools.progress, self.work.folder.path / TRIALS / trial.name
        seconds = waiting.pop(trial.name)
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

        host, packed = self.work.hosts.find_free(trial.hosts), self.cluster.share(pack(folder))

        def take(delivery: Delivery) -> None:
            self.work.again(trial, partial(store, delivery))

        def fail(error: Exception) -> None:
            if isinstance(error, HostUnreachable) and host is not None:
                self.work.lose(host, error)
                waiting[trial.name] = seconds
            else:
                self.work.again(trial, partial(refuse, error))

        if host is None:
            self._out.start(trial, measure, seconds, packed, take=take, fail=fail)
        else:
            self.work.hosts.take(host)
            self._start_there(trial, host, seconds, packed, take=take, fail=fail)


def _digest_model(trial: TrialSpec) -> str:
    """Return what decides the answers of the reference, of the facts in the description of a trial."""
    recipe = trial.recipe
    parts = (recipe.model, recipe.preprocess, recipe.task)
    return "\n".join("" if part is None else part.model_dump_json() for part in parts)
