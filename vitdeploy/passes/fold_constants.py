"""Compute at export time what does not depend on the image."""

from __future__ import annotations

from onnxscript import optimizer

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult

_LARGEST_RESULT_ELEMENTS = 1 << 24
"""64 MiB of float32: bias tables of Swin (49 x 49 x heads x windows) fit, a whole embedding matrix is left alone."""


class FoldConstants(Pass):
    """Shape arithmetic, bias tables and identities away.

        Shape ─▶ Gather ─▶ Concat ─▶ Reshape          Reshape(·, [1, 197, 192])
        table ─▶ Gather ─▶ Transpose ─▶ Add      ─▶   Add(·, bias)

    The optimizer's default keeps tensors above a small size unfolded. Swin then computes its relative-position bias
    at run time, and TensorRT fuses 2 of 12 attentions instead of 12.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Fold; `fired` counts the nodes that went."""
        before = graph.model.graph.num_nodes()
        optimizer.optimize_ir(
            graph.model, input_size_limit=_LARGEST_RESULT_ELEMENTS, output_size_limit=_LARGEST_RESULT_ELEMENTS
        )
        return PassResult(max(0, before - graph.model.graph.num_nodes()))
