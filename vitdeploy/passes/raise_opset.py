"""Convert the graph to the opset that has `Attention`."""

from __future__ import annotations

import logging

from onnxscript import version_converter

from vitdeploy.errors import GraphError
from vitdeploy.graph.dialect import CANONICAL_OPSET
from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult

_LOG = logging.getLogger(version_converter.__name__)


class RaiseOpset(Pass):
    """Convert an older graph up to the canonical opset.

        ReduceMean(axes=[-1])          ReduceMean(x, axes)
        opset 17                ─▶     opset 23

    Left alone: a newer graph, because its operators are a superset.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Convert; `fired` is 1 when the opset changed.

        Raises:
            GraphError: an operator has no conversion.
        """
        if graph.opset >= CANONICAL_OPSET:
            return PassResult(0)
        before = graph.opset
        reason = "an operator in it has no conversion"
        _LOG.disabled = True  # it warns of its fall-back, which works, and of failures, which are raised below
        try:
            version_converter.convert_version(graph.model, CANONICAL_OPSET, fallback=True)
        except Exception as error:  # noqa: BLE001  the converters raise RuntimeError, ValueError and other types
            reason = " ".join(str(error).split())[:200]
        finally:
            _LOG.disabled = False
        if graph.opset < CANONICAL_OPSET:  # a fall-back that fails leaves the graph unchanged
            raise GraphError(
                f"the graph does not convert from opset {before} to {CANONICAL_OPSET}: {reason}",
                fix="Export the model again with opset 18 or later.",
            )
        return PassResult(1)
