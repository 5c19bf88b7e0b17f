"""Drop what nothing reads."""

from __future__ import annotations

from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult


class RemoveDead(Pass):
    """Nodes, constants and operator domains that rewrites left without a reader.

    Weights that only a removed node read would otherwise be written to disk twice.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Remove; `fired` counts constants and nodes."""
        main = graph.model.graph
        before = main.num_nodes() + len(main.initializers)
        RemoveUnusedNodesPass()(graph.model)
        RemoveUnusedOpsetsPass()(graph.model)
        return PassResult(before - main.num_nodes() - len(main.initializers))
