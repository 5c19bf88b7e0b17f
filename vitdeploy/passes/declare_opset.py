"""Declare the opset that the target-ready graph needs."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult

_IR_VERSIONS = {20: 9, 21: 10, 22: 10, 23: 11}
"""The ONNX IR version that was released with each opset. Older runtimes refuse a newer one."""

_FIRST_WITH_BLOCKS = 21
_QDQ = {"QuantizeLinear", "DequantizeLinear"}
_ADDED_BY_21 = {"output_dtype", "block_size", "saturate"}
"""Attributes of QuantizeLinear and DequantizeLinear that opset 20 does not have. Their defaults have no effect."""

_REDEFINED = {"GroupNormalization": 21}
"""Operators that an opset gave another meaning: here a scale for each group became a scale for each channel."""


class DeclareOpset(Pass):
    """Declare the oldest opset that the graph fits.

        Attention-23 lowered, opset 23   ─▶   the same nodes, opset 20

    From opset 20 to 23 the operators of a ViT gained data types and kept their meaning. The pass declares the oldest
    opset, from `opset` on, that has every operator with the same meaning and for the same data types. That is 22 for a
    convolution in bfloat16, and 21 for weights of 4 bits or in blocks. The nodes that need more than `opset` are
    refused with the reason.
    """

    opset: int

    def apply(self, graph: Graph) -> PassResult:
        """Declare it; `fired` is 1 if the opset changed."""
        refused: dict[str, str] = {}
        for opset in range(self.opset, graph.opset):
            unfit = _find_unfit_nodes(graph, opset)
            refused = refused or unfit
            if not unfit:
                _declare(graph, opset)
                return PassResult(1, refused)
        return PassResult(0, refused)


def _find_unfit_nodes(graph: Graph, opset: int) -> dict[str, str]:
    """Return the nodes that do not have the same meaning at `opset`, each with the reason."""
    reasons = ((node, _unfit_reason(node, opset, graph.opset)) for node in graph.nodes if node.domain == "")
    return {node.name or node.op_type: reason for node, reason in reasons if reason is not None}


def _unfit_reason(node: ir.Node, opset: int, current: int) -> str | None:
    import onnx.defs

    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return f"{node.op_type} does not exist at opset {opset}"
    if opset < _REDEFINED.get(node.op_type, 0) <= current:
        return f"{node.op_type} has another meaning at opset {opset}"
    if opset < _FIRST_WITH_BLOCKS and node.op_type in _QDQ and node.attributes.get_int("block_size"):
        return f"{node.op_type} has no block_size at opset {opset}"
    for formal, value in zip(schema.inputs, node.inputs, strict=False):
        dtype = value.dtype.name.lower() if value is not None and value.dtype is not None else None
        if dtype is not None and f"tensor({dtype})" not in formal.types:
            return f"{node.op_type} does not take {dtype} at opset {opset}"
    return None


def _declare(graph: Graph, opset: int) -> None:
    if opset < _FIRST_WITH_BLOCKS:
        for node in graph.nodes:
            for name in _ADDED_BY_21 & set(node.attributes) if node.op_type in _QDQ else ():
                node.attributes.pop(name)
    graph.opset = opset
    graph.model.ir_version = _IR_VERSIONS[opset]
