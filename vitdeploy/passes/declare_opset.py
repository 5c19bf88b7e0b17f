"""Say which opset the target-ready graph needs."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult

_IR_VERSIONS = {20: 9, 21: 10, 22: 10, 23: 11}
"""The ONNX IR version released with an opset: older runtimes refuse a newer one."""

_BLOCKS = 21
_PAIR = {"QuantizeLinear", "DequantizeLinear"}
_ADDED_BY_21 = {"output_dtype", "block_size", "saturate"}
"""Attributes of QuantizeLinear and DequantizeLinear that opset 20 does not know; at their defaults they say nothing."""

_REDEFINED = {"GroupNormalization": 21}
"""Operators and the opset that changed what they do: a scale for each group became one for each channel."""


class DeclareOpset(Pass):
    """Declare an older opset once no operator needs the newer one.

        Attention-23 lowered, opset 23   ─▶   the same nodes, opset 20

    From 20 to 23 the operators of a ViT gained data types, not meaning. The oldest opset from `opset` on is declared
    that has every operator, in that meaning, for those types: 22 for a convolution in bfloat16, 21 for weights of 4
    bits or in blocks. What keeps the graph from `opset` is refused by name.
    """

    opset: int

    def apply(self, graph: Graph) -> PassResult:
        """Lower the declaration; `fired` is 1 when it changed."""
        told: dict[str, str] = {}
        for opset in range(self.opset, graph.opset):
            refused = _refused(graph, opset)
            told = told or refused
            if not refused:
                _declare(graph, opset)
                return PassResult(1, told)
        return PassResult(0, told)


def _refused(graph: Graph, opset: int) -> dict[str, str]:
    """The nodes that `opset` does not know as they are, with the reason."""
    reasons = ((node, _reason(node, opset, graph.opset)) for node in graph.nodes if node.domain == "")
    return {node.name or node.op_type: reason for node, reason in reasons if reason is not None}


def _reason(node: ir.Node, opset: int, now: int) -> str | None:
    import onnx.defs

    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return f"{node.op_type} does not exist at opset {opset}"
    if opset < _REDEFINED.get(node.op_type, 0) <= now:
        return f"{node.op_type} means something else at opset {opset}"
    if opset < _BLOCKS and node.op_type in _PAIR and node.attributes.get_int("block_size"):
        return f"{node.op_type} has no blocks at opset {opset}"
    for formal, value in zip(schema.inputs, node.inputs, strict=False):
        kind = f"tensor({value.dtype.name.lower()})" if value is not None and value.dtype is not None else None
        if kind is not None and kind not in formal.types:
            return f"{node.op_type} takes no {kind[7:-1]} at opset {opset}"
    return None


def _declare(graph: Graph, opset: int) -> None:
    if opset < _BLOCKS:
        for node in graph.nodes:
            for name in _ADDED_BY_21 & set(node.attributes) if node.op_type in _PAIR else ():
                node.attributes.pop(name)
    graph.opset = opset
    graph.model.ir_version = _IR_VERSIONS[opset]
