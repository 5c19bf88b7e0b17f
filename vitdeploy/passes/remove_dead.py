"""Remove nodes and constants that nothing reads."""

from __future__ import annotations

from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult


class RemoveDead(Pass):
    """Remove the nodes, constants and operator domains that rewrites left without a reader.

    Otherwise old weights would be written to disk beside the new ones.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Remove them; `fired` counts constants and nodes."""
        main = graph.model.graph
        before = main.num_nodes() + len(main.initializers)
        RemoveUnusedNodesPass()(graph.model)
        RemoveUnusedOpsetsPass()(graph.model)
        return PassResult(before - main.num_nodes() - len(main.initializers))
