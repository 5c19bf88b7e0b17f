"""Bring the graph to the opset that has `Attention`."""

from __future__ import annotations

from onnxscript import version_converter

from vitdeploy.errors import GraphError
from vitdeploy.graph.dialect import CANONICAL_OPSET
from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult


class RaiseOpset(Pass):
    """Convert an older graph up to the canonical opset.

        ReduceMean(axes=[-1])          ReduceMean(x, axes)
        opset 17                ─▶     opset 23

    A newer graph is left as it is: its operators are a superset.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Convert; `fired` is 1 when the opset changed.

        Raises:
            GraphError: an operator has no conversion.
        """
        if graph.opset >= CANONICAL_OPSET:
            return PassResult(0)
        before = graph.opset
        try:
            version_converter.convert_version(graph.model, CANONICAL_OPSET, fallback=True)
        except Exception as error:  # the converters raise RuntimeError, ValueError and their own types alike
            raise GraphError(
                f"the graph does not convert from opset {before} to {CANONICAL_OPSET}: {' '.join(str(error).split())[:200]}",
                fix="Export the model again with opset 18 or later.",
            ) from None
        graph.opset = max(graph.opset, CANONICAL_OPSET) if graph.opset != before else graph.opset
        return PassResult(int(graph.opset != before))
