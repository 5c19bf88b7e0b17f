"""A Ray cluster of three nodes on this machine, started once for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vitdeploy.cluster import Cluster, connect
from vitdeploy.progress import Silent

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster as RayCluster

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 3 << 30
NODE = {"num_cpus": 1, "memory": MEMORY, "object_store_memory": 100 << 20}


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[RayCluster]:
    """The nodes. A test may add one and kill it."""
    pytest.importorskip("ray", reason="pip install 'vitdeploy[sweep]'")
    from ray.cluster_utils import Cluster as RayCluster

    # A worker sees the tests, so that it can run their functions; it has no more threads than its node has CPUs.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    nodes = RayCluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(**NODE, resources={"edge": 1})
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="session")
def cluster(ray_nodes: Any) -> Iterator[Cluster]:
    """A connection to the three nodes."""
    with connect(ray_nodes.address, Silent()) as connected:
        yield connected
