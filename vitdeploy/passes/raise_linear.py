"""Replace every linear that is a Gemm by MatMul and Add."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, dims, operand
from vitdeploy.passes import Pass, PassResult


class RaiseLinear(Pass):
    """Replace a `Gemm` with a constant weight by the two operators that most exporters write.

        x ─ Gemm(W, b, transB=1)   ─▶   x ─ MatMul(Wᵀ) ─ Add(b)

    Left alone: a Gemm that scales (alpha, beta) or transposes its input, and a Gemm whose weight is computed.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Raise every plain Gemm."""
        used_names = {n.name for n in graph.nodes}
        gemms = [n for n in graph.nodes if n.op_type == "Gemm" and n.domain == "" and _is_plain(n)]
        for node in gemms:
            name = (node.name or "").removesuffix("/Gemm")
            _rewrite(graph, node, node.name or "" if used_names & {f"{name}/MatMul", f"{name}/Add"} else name)
        return PassResult(len(gemms))


def _is_plain(node: ir.Node) -> bool:
    attributes = node.attributes
    is_unscaled = attributes.get_float("alpha", 1.0) == attributes.get_float("beta", 1.0) == 1.0
    rank = len(dims(node.inputs[0]) or ())
    return is_unscaled and not attributes.get_int("transA", 0) and constant(node.inputs[1]) is not None and rank == 2


def _rewrite(graph: Graph, node: ir.Node, name: str) -> None:
    tape = ir.tape.Tape()
    weight = operand(node, 1)
    if node.attributes.get_int("transB", 0):
        weight = tape.initializer(ir.tensor(np.ascontiguousarray(array(weight).T), name=f"{name}.weight_t"))
    result = tape.op("MatMul", [node.inputs[0], weight], name=f"{name}/MatMul")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        result.shape, result.type = node.outputs[0].shape, node.outputs[0].type
        result = tape.op("Add", [result, bias], name=f"{name}/Add")
    graph.replace([node], tape, node.outputs[0], result)
