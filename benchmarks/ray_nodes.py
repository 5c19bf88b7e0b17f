"""A Ray cluster whose nodes are all on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vitdeploy.cluster import connection

_NODE = {"num_cpus": 1, "memory": 3 << 30, "object_store_memory": 200 << 20}


@contextmanager
def start_nodes(count: int) -> Iterator[Any]:
    """Start nodes with one CPU each, as Ray's `Cluster`; end them after the block. The first is the head."""
    os.environ.update(connection.SETTINGS)
    from ray.cluster_utils import Cluster

    nodes: Any = Cluster(initialize_head=True, head_node_args={**_NODE, "include_dashboard": False})
    try:
        for _ in range(count - 1):
            nodes.add_node(**_NODE)
        yield nodes
    finally:
        nodes.shutdown()
