"""Trials of a cluster that are exported and wait for a host."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vitdeploy.cluster import Cluster, NodeRequest, this_node
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.commands.sweep.hosts import SweepHost
from vitdeploy.commands.sweep.on_node import Delivery
from vitdeploy.commands.sweep.work import SweepWork
from vitdeploy.errors import RemoteError

_SETTINGS = ("PATH", "SSH_AUTH_SOCK")


@dataclass
class HostQueue:
    """The trials that wait, with what their exports brought."""

    work: SweepWork
    _waiting: list[tuple[TrialSpec, Delivery]] = field(init=False, default_factory=list)

    def __bool__(self) -> bool:
        """Return True if a trial waits."""
        return bool(self._waiting)

    def add(self, trial: TrialSpec, delivery: Delivery) -> None:
        """Add a trial that was exported, or whose host was lost."""
        self._waiting.append((trial, delivery))

    def is_full(self, trial: TrialSpec, exporting: Iterable[TrialSpec]) -> bool:
        """Return True if as many trials wait for the hosts of a trial, or are being exported for them, as there are.

        More exports would only fill the memory.
        """
        living = {host.name for host in self.work.hosts.list_living(trial.hosts)}
        ahead = [*(other for other, _ in self._waiting), *exporting]
        return bool(living) and sum(bool(living & set(other.hosts)) for other in ahead) >= len(living)

    def take(self) -> Iterator[tuple[TrialSpec, Delivery, SweepHost]]:
        """Yield the trials that can go on, each with a host that is now at work. Those without any host are put off."""
        hosts, waiting = self.work.hosts, self._waiting
        self._waiting = []
        for trial, delivery in waiting:
            if not hosts.list_living(trial.hosts):
                self.work.put_off[trial.name] = hosts.explain(trial.hosts)
            elif (host := hosts.find_free(trial.hosts)) is None:
                self._waiting.append((trial, delivery))
            else:
                hosts.take(host)
                yield trial, delivery, host


def request_own_node() -> NodeRequest:
    """Return a request for the node that the command runs on, from where the user's ssh leads to hosts."""
    return NodeRequest(cpus=0, nodes=(this_node(),))


def list_settings() -> dict[str, str]:
    """Return the environment variables of the command that ssh and its agent are found by."""
    return {name: os.environ[name] for name in _SETTINGS if name in os.environ}


def refuse_idle_node(cluster: Cluster) -> None:
    """Check that the command's own node takes work, for the calls that wait for hosts.

    Raises:
        RemoteError: it does not.
    """
    if this_node() not in {node.id for node in cluster.nodes}:
        raise RemoteError(
            "the Ray node of this machine has no CPUs, so no work for hosts can run on it",
            fix="Start it with --num-cpus 1 or more.",
        )
