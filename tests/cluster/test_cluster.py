"""Functions on the nodes of a real cluster: their results, their errors, and the death of a process or a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.calls import kill_process_once, refuse, square, stumble, total, wait_on_node
from tests.cluster.conftest import MEMORY
from vitdeploy import environment, machine_lock
from vitdeploy.cluster import Cluster, NodeRequest
from vitdeploy.errors import DataError, RemoteError


def test_each_node_reports_its_machine(cluster: Cluster) -> None:
    assert len(cluster.nodes) == 3
    assert len({node.name for node in cluster.nodes}) == 3, "three nodes of one host have three names"
    for node in cluster.nodes:
        assert (node.cpus, node.memory_bytes) == (1, MEMORY)
        assert node.host.machine == environment.host().machine
        assert (node.boot, node.lock) == (machine_lock.boot_id(), machine_lock.identify())
    assert sorted(sorted(node.resources) for node in cluster.nodes) == [[], ["edge"], ["edge"]]


def test_results_come_with_the_numbers_of_their_calls(cluster: Cluster) -> None:
    results = dict(cluster.run(square, ((n,) for n in range(12)), NodeRequest(cpus=0.5)))
    assert results == {n: n * n for n in range(12)}
    shared = cluster.share(list(range(1000)))
    assert dict(cluster.run(total, [(shared, 1), (shared, 2)], NodeRequest())) == {0: 499501, 1: 499502}
    assert list(cluster.run(square, [], NodeRequest())) == []


def test_an_error_of_a_function_is_raised_here(cluster: Cluster) -> None:
    with pytest.raises(DataError, match="there is no image") as caught:
        list(cluster.run(refuse, [()], NodeRequest()))
    assert caught.value.fix == "Add one."
    with pytest.raises(ZeroDivisionError, match="of the model"):
        list(cluster.run(stumble, [()], NodeRequest()))


def test_what_no_node_can_meet_is_refused_with_names_and_sizes(cluster: Cluster) -> None:
    with pytest.raises(RemoteError, match=r"no node has the 1 CPU and 64 GiB of memory") as caught:
        list(cluster.run(square, [(1,)], NodeRequest(memory_bytes=64 << 30)))
    for node in cluster.nodes:
        assert f"{node.name} (1 CPUs, 3 GiB)" in caught.value.message
    edge = tuple(node.id for node in cluster.nodes if "edge" in node.resources)
    with pytest.raises(RemoteError, match="no node has the 2 CPUs"):
        cluster.start(square, 1, request=NodeRequest(cpus=2, nodes=edge))
    assert cluster.count_slots(NodeRequest(memory_bytes=2 << 30)) == 3
    assert cluster.count_slots(NodeRequest(cpus=0.25)) == 12
    assert cluster.count_slots(NodeRequest(nodes=edge)) == 2


def test_a_call_runs_only_on_the_nodes_of_its_request(cluster: Cluster, tmp_path: Path) -> None:
    edge = tuple(node.id for node in cluster.nodes if "edge" in node.resources)
    results = cluster.run(wait_on_node, [(tmp_path / f"{n}",) for n in range(3)], NodeRequest(nodes=edge))
    assert {node for _, node in results} <= set(edge)


def test_calls_that_have_ended_are_not_cancelled(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray aborts the process if it cancels a call whose result has just arrived."""
    import ray

    ended = cluster.start(square, 2, request=NodeRequest())
    assert cluster.wait([ended]) == [ended]
    running = cluster.start(wait_on_node, tmp_path / "mark", request=NodeRequest())
    cancelled = []
    monkeypatch.setattr(ray, "cancel", lambda ref, *, force: cancelled.append((ref, force)))
    cluster.cancel([ended, running])
    assert cancelled == [(running.ref, True)]
    assert cluster.wait([running]) == [running]
    cluster.interrupt([running], 10.0)
    cluster.cancel([])
    assert cancelled == [(running.ref, True), (running.ref, False)]


def test_a_call_whose_process_dies_runs_again(cluster: Cluster, tmp_path: Path) -> None:
    ((_, pid),) = cluster.run(kill_process_once, [(tmp_path / "mark",)], NodeRequest())
    assert pid > 0
