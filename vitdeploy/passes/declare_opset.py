"""Say which opset the target-ready graph needs."""

from __future__ import annotations

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult

_IR_VERSIONS = {20: 9, 21: 10, 22: 10, 23: 11}
"""The ONNX IR version released with an opset: older runtimes refuse a newer one."""

_ADDED_BY_21 = {"output_dtype", "block_size", "saturate"}
"""Attributes of QuantizeLinear and DequantizeLinear that opset 20 does not know; at their defaults they say nothing."""


_REDEFINED = {"GroupNormalization": 21}
"""Operators and the opset that changed what they do: a scale for each group became one for each channel."""


class DeclareOpset(Pass):
    """Declare an older opset once no operator needs the newer one.

        Attention-23 lowered, opset 23   ─▶   the same nodes, opset 20

    From 20 to 23 the operators of a ViT gained data types, not meaning. An operator that `opset` does not know, or
    knows with another meaning, keeps the graph at its own opset, and is refused by name.
    """

    opset: int

    def apply(self, graph: Graph) -> PassResult:
        """Lower the declaration; `fired` is 1 when it changed."""
        import onnx.defs

        if graph.opset <= self.opset:
            return PassResult(0)
        refused = {}
        for node in graph.nodes:
            if node.domain != "":
                continue
            try:
                onnx.defs.get_schema(node.op_type, self.opset, "")
            except onnx.defs.SchemaError:
                refused[node.name or node.op_type] = f"{node.op_type} does not exist at opset {self.opset}"
            if self.opset < _REDEFINED.get(node.op_type, 0) <= graph.opset:
                refused[node.name or node.op_type] = f"{node.op_type} means something else at opset {self.opset}"
        if refused:
            return PassResult(0, refused)
        for node in graph.nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                for name in _ADDED_BY_21 & set(node.attributes):
                    node.attributes.pop(name)
        graph.opset = self.opset
        graph.model.ir_version = _IR_VERSIONS[self.opset]
        return PassResult(1)
