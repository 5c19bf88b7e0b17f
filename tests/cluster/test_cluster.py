"""Functions on the nodes of a real cluster: their results, their errors, and the death of a process or a node."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.calls import kill_process_once, refuse, square, stumble, total, wait_on_node
from tests.cluster.conftest import MEMORY, NODE
from vitdeploy import environment, machine_lock
from vitdeploy.cluster import Cluster, NodeRequest, connect
from vitdeploy.errors import DataError, RemoteError
from vitdeploy.progress import Silent


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


def test_a_call_whose_process_dies_runs_again(cluster: Cluster, tmp_path: Path) -> None:
    ((_, pid),) = cluster.run(kill_process_once, [(tmp_path / "mark",)], NodeRequest())
    assert pid > 0


def test_a_node_that_dies_costs_its_calls_only(ray_nodes: Any, tmp_path: Path) -> None:
    """Those run again on other nodes. If none is left for them, they do not wait for ever."""
    added = ray_nodes.add_node(**NODE, resources={"doomed": 1})
    with connect(ray_nodes.address, Silent()) as cluster:
        (doomed,) = (node for node in cluster.nodes if "doomed" in node.resources)
        jobs = [cluster.start(wait_on_node, tmp_path / f"{n}", request=NodeRequest()) for n in range(8)]
        only = cluster.start(wait_on_node, tmp_path / "only", request=NodeRequest(nodes=(doomed.id,)))
        until = time.monotonic() + 60
        while not list(tmp_path.glob(f"*-{doomed.id}")):
            assert time.monotonic() < until
            time.sleep(0.02)
        ray_nodes.remove_node(added, allow_graceful=False)
        done: list[Any] = []
        while len(done) < len(jobs):
            done += cluster.wait([job for job in jobs if job not in done])
        assert len({cluster.collect(job) for job in jobs} - {doomed.id}) >= 2
        with pytest.raises(RemoteError, match="no node has the 1 CPU that the work needs"):
            cluster.collect(cluster.wait([only])[0])
        assert doomed.id not in {node.id for node in cluster.alive()}
