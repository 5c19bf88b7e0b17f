"""Compute the scores and the softmax of attention in float32."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vitdeploy.graph.model import Graph
from vitdeploy.graph.structure import CORE
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._float32_part import compute_in_float32


class WidenScores(Pass):
    """Let q · k, the bias and the softmax of each attention compute in float32, in a lowered half-precision graph.

        q ─┐                               q ─ Cast ─┐
        k ─ MatMul ─ [Add bias] ─ Softmax ─ MatMul  ─▶  k ─ Cast ─ MatMul ─ [Add] ─ Softmax ─ Cast ─ MatMul
        v ─────────────────────────────────┘      v ─────────────────────────────────────────┘

    Left alone: attentions in float32, and those that were not raised.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Widen the scores of every attention; `fired` counts attentions."""
        products = [node for node in graph.nodes if (node.name or "").endswith(f"{CORE}/qk")]
        return PassResult(sum(compute_in_float32(graph, _scores(product)) > 0 for product in products))


def _scores(product: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes from q · k to what the product with v reads, and the mask that is added."""
    site = (product.name or "").removesuffix("/qk")
    visited: set[ir.Node] = set()
    pending = [product]
    while pending:
        node = pending.pop()
        if node in visited or node.name == f"{site}/pv":
            continue
        visited.add(node)
        yield node
        above = (value.producer() for value in node.inputs if value is not None)
        pending += [mask for mask in above if mask is not None and mask.name == f"{site}/mask"]
        pending += [use.node for value in node.outputs for use in value.uses()]
