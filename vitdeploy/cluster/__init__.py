"""A running Ray cluster: connect to it, know its nodes, run functions on them.

Queues, scheduling, transfer of results and the detection of dead nodes are Ray's. What is here refuses clusters whose
results could not be compared, and turns what Ray reports into one line.
"""

from vitdeploy.cluster.connection import check_address, connect
from vitdeploy.cluster.nodes import Node
from vitdeploy.cluster.request import NodeRequest
from vitdeploy.cluster.running import Cluster, NodeCall, fetch, this_node

__all__ = ["Cluster", "Node", "NodeCall", "NodeRequest", "check_address", "connect", "fetch", "this_node"]
