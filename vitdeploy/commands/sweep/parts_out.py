"""The parts of trials that are out on a cluster.

prepare         export, and evaluate it      CPUs and memory of its request    shares the machine
answer_part     a part of an evaluation      the same                          the same
join_parts      all parts of it              the same                          the same
measure         the bench                    all CPUs of a node                has the machine alone
run_alone       all of a trial               the same                          the same
pass_to_host    the part that a host does    no CPU of the command's node      the host has a lock of its own
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitdeploy.cluster import Cluster, NodeCall
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.commands.sweep.failures import raise_if_disk_is_full
from vitdeploy.commands.sweep.host_queue import request_own_node
from vitdeploy.commands.sweep.hosts import SweepHost
from vitdeploy.commands.sweep.on_node import Assignment, measure, pass_to_host, run_alone
from vitdeploy.commands.sweep.places import Places
from vitdeploy.commands.sweep.work import SweepWork
from vitdeploy.errors import NoNodeLeft, RemoteError, VitdeployError

MOST_SAMPLES = 2_000
"""An evaluation of more samples is done in parts, on as many nodes as are free."""
_PATIENCE_S = 20.0
"""The time that work on hosts has to end the jobs there after Ctrl-C."""

Take = Callable[[Any], None]
"""Gets what a function of `on_node` has returned."""
Fail = Callable[[Exception], None]
"""Gets the error in the place of a result."""


@dataclass(frozen=True, eq=False)
class _Part:
    trial: TrialSpec
    alone: bool
    host: SweepHost | None
    take: Take
    fail: Fail


@dataclass
class PartsOut:
    """The parts that are out, and the answers of the reference that they get."""

    work: SweepWork
    cluster: Cluster
    places: Places
    references: dict[str, object] = field(init=False, default_factory=dict)
    _out: dict[NodeCall[Any], _Part] = field(init=False, default_factory=dict)
    _warned: set[str] = field(init=False, default_factory=set)

    def __bool__(self) -> bool:
        """Return True if a part is out."""
        return bool(self._out)

    @property
    def measuring(self) -> int:
        """The number of parts that have a node alone."""
        return sum(part.alone for part in self._out.values())

    @property
    def sharing(self) -> Sequence[TrialSpec]:
        """The trials of the parts that share nodes, one for each part."""
        return [part.trial for part in self._out.values() if part.host is None and not part.alone]

    def count_free(self) -> int:
        """Return the number of parts that may begin beside those that share nodes. A measurement keeps its node.

        None may begin if no node is left that can measure: what they bring could not be timed.
        """
        largest, measuring = self.places.count_largest(self.cluster), self.measuring
        most = largest - measuring if measuring or not largest else self.cluster.count_slots(self.places.shared)
        return most - len(self.sharing)

    def count_free_for_parts(self) -> int:
        """Return the number of nodes that may answer parts of one evaluation: both models take all cores of a node."""
        return min(self.count_free(), sum(node.id in self.places.names for node in self.cluster.alive()))

    def count_free_nodes(self) -> int:
        """Return the number of measurements that may begin."""
        return self.places.count_largest(self.cluster) - self.measuring - len(self.sharing)

    def start(
        self,
        trial: TrialSpec,
        function: Callable[..., Any],
        *arguments: object,
        take: Take,
        fail: Fail,
        host: SweepHost | None = None,
    ) -> None:
        """Send a part to a node.

        Args:
            trial: the trial.
            function: of `on_node`; it gets the assignment first.
            arguments: the others.
            take: gets the result.
            fail: gets the error.
            host: the host that the trial is for.

        Raises:
            NoNodeLeft: no node can meet the request.
        """
        cached = self.work.plan.cache is not None
        assignment = Assignment(
            trial, self.work.tools.naming.machine, self.places.names, cached, dict(self.references), host, MOST_SAMPLES
        )
        is_there, alone = function is pass_to_host, function in (measure, run_alone)
        shared = request_own_node() if is_there else self.places.shared
        call = self.cluster.start(function, assignment, *arguments, request=self.places.alone if alone else shared)
        self._out[call] = _Part(trial, alone, host if is_there else None, take, fail)

    def wait(self) -> None:
        """Wait until parts have ended, and hand over what they brought.

        A cluster without a node for the work is no failure of a trial: it is done when the sweep goes on.

        Raises:
            NoNodeLeft: no node is left for a part, or for the next one of its trial. The others are handed over before.
            VitdeployError: a disk is full.
        """
        lost: NoNodeLeft | None = None
        for call in self.cluster.wait(list(self._out)):
            part = self._out.pop(call, None)
            if part is None:
                continue  # another one of these parts has failed its trial
            if part.host is not None:
                self.work.hosts.release(part.host)
            try:
                delivery = self.cluster.collect(call)
                self._warn(f"{part.trial.title}: {line}" for line in delivery.warnings)
                part.take(delivery)
            except NoNodeLeft as error:
                lost = error
            except VitdeployError as error:
                if not isinstance(error, RemoteError):
                    raise  # of all errors of a trial only a full disk gets here
                part.fail(error)
            except Exception as error:  # noqa: BLE001  the other trials go on, whatever happened to this one
                raise_if_disk_is_full(error, self.work.folder.path)
                part.fail(error)
        if lost is not None:
            raise lost

    def end_trial(self, trial: TrialSpec) -> None:
        """End all parts of a trial."""
        calls = [call for call, part in self._out.items() if part.trial is trial]
        self.cluster.cancel(calls)
        for call in calls:
            del self._out[call]

    def _warn(self, lines: Iterable[str]) -> None:
        """Show warnings. Those of all parts of a trial are often the same."""
        for line in lines:
            if line not in self._warned:
                self._warned.add(line)
                self.work.tools.progress.warn(line)

    def end(self) -> None:
        """End all parts, and the jobs on hosts."""
        there = [call for call, part in self._out.items() if part.host is not None]
        self.cluster.cancel(self._out.keys() - set(there))
        self.cluster.interrupt(there, _PATIENCE_S)
