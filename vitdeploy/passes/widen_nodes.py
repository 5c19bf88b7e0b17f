"""Compute named nodes of a half-precision graph, or all of them, in float32."""

from __future__ import annotations

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._float32_part import compute_in_float32


class WidenNodes(Pass):
    """Let some nodes compute in float32, in a lowered half-precision graph.

        x ─ LayerNormalization ─ MatMul W ─ …  ─▶  x ─ Cast ─ LayerNormalization ─ MatMul Cast(W) ─ … ─ Cast

    The weights keep their bytes. Q/DQ pairs stay, so what they round is rounded as before. Left alone: nodes that
    compute in float32 already, and outputs of the graph in half precision.

    Attributes:
        only: the names of the nodes; None for all.
    """

    only: frozenset[str] | None = None

    def apply(self, graph: Graph) -> PassResult:
        """Widen them; `fired` counts nodes."""
        nodes = (node for node in graph.nodes if self.only is None or node.name in self.only)
        return PassResult(compute_in_float32(graph, nodes))
