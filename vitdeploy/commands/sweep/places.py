"""The nodes of a cluster that the trials of a sweep run on, and what each part of a trial takes of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitdeploy import environment
from vitdeploy.cluster import Cluster, Node, NodeRequest
from vitdeploy.commands.sweep.definition import ClusterSpec
from vitdeploy.errors import RemoteError

_CPUS = 4.0
"""An export uses one core most of the time; calibration and evaluation use all that they get."""
_GIB = 2**30


@dataclass(frozen=True)
class Places:
    """The nodes of one kind of machine.

    Attributes:
        names: id -> name of these nodes.
        shared: what an export and an evaluation need.
        alone: what a measurement of latency needs: all CPUs of the largest nodes, so that nothing runs beside it.
    """

    names: Mapping[str, str]
    shared: NodeRequest
    alone: NodeRequest

    def count_largest(self, cluster: Cluster) -> int:
        """Return the number of nodes that live and can measure."""
        return sum(self.alone.fits(node) for node in cluster.alive())

    def refuse_none_left(self, cluster: Cluster) -> None:
        """Refuse to go on if no node is left that can do a part of a trial.

        Raises:
            NoNodeLeft: none is.
        """
        for request in (self.shared, self.alone):
            request.refuse_too_large(cluster.alive())


def choose_machine(nodes: Sequence[Node]) -> str:
    """Return the kind of machine that trials run on: this one, or the only kind that there is.

    Raises:
        RemoteError: the nodes are of several kinds, and none is like this machine.
    """
    here, kinds = environment.host().machine, {node.host.machine: node for node in nodes}
    if here in kinds:
        return here
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} ({node.name}: {node.host.cpu})" for kind, node in kinds.items())
        raise RemoteError(
            f"the nodes are of {len(kinds)} kinds of machines, whose latencies cannot be compared: {listed}",
            fix="Run the sweep on a machine of the kind that it is about.",
        )
    return next(iter(kinds))


def choose_places(nodes: Sequence[Node], machine: str, spec: ClusterSpec) -> Places:
    """Choose the nodes of one kind of machine, and the requests for them.

    Raises:
        RemoteError: no node can meet a request, or nodes on one machine do not share its lock.
    """
    alike = [node for node in nodes if node.host.machine == machine]
    _refuse_separate_locks(alike)
    ids, memory = tuple(node.id for node in alike), int(spec.memory_gib * _GIB)
    cpus = spec.cpus or min(_CPUS, *(node.cpus for node in alike))
    shared = NodeRequest(cpus=cpus, memory_bytes=memory, nodes=ids)
    alone = NodeRequest(cpus=max(node.cpus for node in alike), memory_bytes=memory, nodes=ids)
    for request in (shared, alone):
        request.refuse_too_large(nodes)
    return Places({node.id: node.name for node in alike}, shared, alone)


def _refuse_separate_locks(nodes: Sequence[Node]) -> None:
    """Refuse nodes on one machine that cannot keep each other from measuring: containers with a /run/lock of their own.

    Raises:
        RemoteError: there are such nodes.
    """
    first: dict[str, Node] = {}
    for node in nodes:
        other = first.setdefault(node.boot, node)
        if node.boot and other.lock != node.lock:
            raise RemoteError(
                f"{other.name} and {node.name} are on one machine, but do not share its lock for measurements",
                fix="Give their containers the same folder /run/lock, or use one of the two.",
            )
