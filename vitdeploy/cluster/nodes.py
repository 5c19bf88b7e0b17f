"""The nodes of a cluster: what each has and runs, reported by the node itself."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy import environment, machine_lock
from vitdeploy.environment import Host
from vitdeploy.errors import RemoteError
from vitdeploy.frozen import Frozen

_PATIENCE_S = 120.0
"""The time that all nodes have to start a process and report. Ten may start on one slow disk."""
_GIB = 2**30
_NAMED = 3
_DIGITS = 8
_USUAL = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources that are not the user's own."""
_SAME = "Install the same versions of Python, Ray, vitdeploy and its libraries on all nodes. Then restart Ray there."


_REPORT = """
def report():
    import platform
    import sys

    import ray

    try:
        from vitdeploy.cluster.nodes import describe_node

        return describe_node()
    except ImportError as error:
        return f"{error} (Python {platform.python_version()} of {sys.executable}, Ray {ray.__version__})"
"""
"""The function that a node runs to report itself."""


class Report(Frozen):
    """The report of a node. The versions are those of `describe_versions`."""

    versions: Mapping[str, str]
    host: Host
    boot: str
    lock: str


@dataclass(frozen=True)
class Node:
    """A node of a cluster that can take work.

    Attributes:
        id: Ray's id of the node.
        name: its host name, with a part of the id where several nodes have the same.
        cpus: the CPUs that Ray counts.
        memory_bytes: the memory that Ray counts.
        resources: the names of its custom resources.
        host: the facts about its machine; `host.machine` is the kind of machine that evidence names.
        boot: the machine itself, until it is started again. Several nodes may be on one.
        lock: the file that locks the machine for a measurement; see `machine_lock.identify`.
    """

    id: str
    name: str
    cpus: float
    memory_bytes: int
    resources: frozenset[str]
    host: Host
    boot: str
    lock: str

    def describe(self) -> str:
        """Return the node with its size in words."""
        return f"{self.name} ({self.cpus:g} CPUs, {self.memory_bytes / _GIB:.3g} GiB)"


def list_nodes() -> tuple[Node, ...]:
    """Ask each node with CPUs for its versions and its machine. The process is connected to the cluster.

    Raises:
        RemoteError: a node does not report, or its versions are others than those of this process; or no node has CPUs.
    """
    alive = [node for node in list_alive() if node["Resources"].get("CPU", 0) > 0]
    if not alive:
        raise RemoteError("no node of the Ray cluster has CPUs", fix="Add one: ray start --address HOST:PORT.")
    names = _name(alive)
    reports = _ask(names)
    refuse_other_versions({names[key]: report.versions for key, report in reports.items()}, describe_versions())
    return tuple(_make_node(node, names[node["NodeID"]], reports[node["NodeID"]]) for node in alive)


def list_alive() -> list[dict[str, Any]]:
    """Return what Ray knows about each node that lives."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def describe_versions() -> dict[str, str]:
    """Return the versions in this process that decide results, with the digest of vitdeploy's own code."""
    import ray

    return {
        "Python": platform.python_version(),
        "Ray": ray.__version__,
        **environment.library_versions(),
        "code of vitdeploy": environment.digest_code(Path(environment.__file__).parent)[:_DIGITS],
    }


def refuse_other_versions(nodes: Mapping[str, Mapping[str, str]], here: Mapping[str, str]) -> None:
    """Refuse nodes whose results could not be compared with those of others.

    Args:
        nodes: name of a node -> its versions.
        here: the versions of this process.

    Raises:
        RemoteError: they differ. Each node is named with both versions.
    """
    differing = []
    for name, versions in nodes.items():
        parts = [
            f"{what} {versions.get(what, 'not installed')} (here {here.get(what, 'not installed')})"
            for what in dict.fromkeys((*here, *versions))
            if versions.get(what) != here.get(what)
        ]
        if parts:
            differing.append(f"{name} has {', '.join(parts)}")
    if differing:
        more = f"; and {len(differing) - _NAMED} more nodes" if len(differing) > _NAMED else ""
        raise RemoteError(f"versions differ between nodes: {'; '.join(differing[:_NAMED])}{more}", fix=_SAME)


def _name(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    hosts = [str(node["NodeManagerHostname"]) for node in nodes]
    return {
        node["NodeID"]: host if hosts.count(host) == 1 else f"{host}/{node['NodeID'][:6]}"
        for node, host in zip(nodes, hosts, strict=True)
    }


def _ask(names: Mapping[str, str]) -> dict[str, Report]:
    """Return the report of each node: id -> name.

    Raises:
        RemoteError: a node has no vitdeploy, or does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_make_reporter())
    tasks = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False)).remote(): key for key in names
    }
    _, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=_PATIENCE_S)
    if late:
        raise RemoteError(
            f"{names[tasks[late[0]]]} did not report within {_PATIENCE_S:g} s", fix="Restart Ray on this node."
        )
    reports = {}
    for one, key in tasks.items():
        try:
            answer = ray.get(one)
        except ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise RemoteError(f"{names[key]} cannot run a task: {reason}", fix="Restart Ray on this node.") from None
        if isinstance(answer, str):
            raise RemoteError(
                f"vitdeploy is not usable on {names[key]}: {answer}", fix="Install the same vitdeploy on all nodes."
            )
        reports[key] = Report.model_validate(answer)
    return reports


def _make_reporter() -> Any:
    """Return the function that a node runs. It travels as code, because vitdeploy may be missing there.

    It is made of a text: code of a file may hold what a coverage tool or a debugger has put into it, and that does not
    travel.
    """
    names: dict[str, Any] = {}
    exec(_REPORT, names)  # noqa: S102  the text above
    return names["report"]


def describe_node() -> dict[str, Any]:
    """Return the report of this node as data."""
    report = Report(
        versions=describe_versions(),
        host=environment.host(),
        boot=machine_lock.boot_id(),
        lock=machine_lock.identify(),
    )
    return report.model_dump(mode="json")


def _make_node(facts: Mapping[str, Any], name: str, report: Report) -> Node:
    resources = facts["Resources"]
    own = {key for key in resources if key not in _USUAL and not key.startswith(("node:", "accelerator_type:"))}
    return Node(
        id=facts["NodeID"],
        name=name,
        cpus=float(resources["CPU"]),
        memory_bytes=int(resources.get("memory", 0)),
        resources=frozenset(own),
        host=report.host,
        boot=report.boot,
        lock=report.lock,
    )
