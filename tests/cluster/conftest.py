"""A Ray cluster of three nodes on this machine, started once for all tests of this folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.remote.conftest import far, far_venv, keys, lab, named, near  # noqa: F401  fixtures: hosts of a sweep
from vitdeploy.cluster import Cluster, connect, connection
from vitdeploy.progress import Silent

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster as RayCluster

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 3 << 30
NODE = {"num_cpus": 1, "memory": MEMORY, "object_store_memory": 100 << 20}


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[RayCluster]:
    """The nodes. A test may add one and kill it."""
    os.environ.update(connection.SETTINGS)
    pytest.importorskip("ray", reason="pip install 'vitdeploy[sweep]'")
    from ray.cluster_utils import Cluster as RayCluster

    # So that a node can run functions of tests.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # A dead node is seen in seconds. Ray's own niceness of 15 leaves little time beside tests on the same core.
    quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3, "worker_niceness": 0}
    head = {**NODE, "include_dashboard": False, "_system_config": quick}
    nodes = RayCluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        nodes.add_node(**NODE, resources={"edge": 1})
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="session")
def cluster(ray_nodes: Any) -> Iterator[Cluster]:
    """A connection to the three nodes, whose processes measure for a moment, as those of tests do."""
    import ray

    hook = {"worker_process_setup_hook": "tests.cluster.calls.measure_shortly"}
    ray.init(ray_nodes.address, runtime_env=hook, log_to_driver=False, logging_level=logging.ERROR)
    with connect(ray_nodes.address, Silent()) as connected:
        yield connected
    ray.shutdown()
