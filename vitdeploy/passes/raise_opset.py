"""Convert the graph to the opset that has `Attention`."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnxscript import version_converter

from vitdeploy.errors import GraphError
from vitdeploy.graph.dialect import CANONICAL_OPSET
from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult

_LOG = logging.getLogger(version_converter.__name__)

_FIRST_WITH_SAMPLING = 11
"""The opset that gave Resize attributes for its coordinates, with other defaults than the only way until then."""


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
        before, resizes = graph.opset, _find_old_resizes(graph)
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
        _keep_sampling(graph, resizes)
        return PassResult(1)


def _find_old_resizes(graph: Graph) -> set[str | None]:
    """Return the names of the values that a Resize or Upsample from before opset 11 computes."""
    if graph.opset >= _FIRST_WITH_SAMPLING:
        return set()
    return {node.outputs[0].name for node in graph.model.graph.all_nodes() if node.op_type in ("Resize", "Upsample")}


def _keep_sampling(graph: Graph, resizes: set[str | None]) -> None:
    """Write what an old Resize always did into attributes: the converter leaves them to their new defaults."""
    for node in graph.model.graph.all_nodes():
        if node.op_type == "Resize" and node.outputs[0].name in resizes:
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            if node.attributes.get_string("mode", "nearest") == "nearest":
                node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")
