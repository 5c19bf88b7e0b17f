"""Lower each RMSNormalization to operators that exist at the opset of every target."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, dims, operand
from vitdeploy.passes import Pass, PassResult


class LowerRmsNorm(Pass):
    """Replace x / √(mean(x²) + ε) · γ, one operator since opset 23, by those that it is made of.

        x ─ RMSNormalization(γ)   ─▶   x ─┬─ Pow 2 ─ ReduceMean ─ Add ε ─ Sqrt ─ Div ─ Mul γ
                                          └──────────────────────────────────────┘

    This is the form that ONNX Runtime and OpenVINO recognise and fuse, and that JetPack 6 reads. In float16 and
    bfloat16 everything before γ is computed in float32, between two Casts, as the operator itself does (its
    stash_type). Left alone and refused: an input whose rank is not known.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Lower every RMS norm."""
        refused, fired = {}, 0
        for node in [n for n in graph.nodes if n.op_type == "RMSNormalization" and n.domain == ""]:
            if (shape := dims(operand(node, 0))) is None:
                refused[node.name or ""] = "the rank of its input is not known"
                continue
            _lower(graph, node, len(shape))
            fired += 1
        return PassResult(fired, refused)


def _lower(graph: Graph, node: ir.Node, rank: int) -> None:
    x, name, tape = operand(node, 0), node.name, ir.tape.Tape()
    first = node.attributes.get_int("axis", -1) % rank

    def number(label: str, value: float) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(value, np.float32), name=f"{name}/{label}"))

    is_half = x.dtype not in (None, ir.DataType.FLOAT)
    wide = tape.op("Cast", [x], {"to": ir.DataType.FLOAT}, name=f"{name}/to_float") if is_half else x
    squares = tape.op("Pow", [wide, number("two", 2.0)], name=f"{name}/Pow")
    axes = tape.initializer(ir.tensor(np.arange(first, rank, dtype=np.int64), name=f"{name}/axes"))
    mean = tape.op("ReduceMean", [squares, axes], {"keepdims": 1}, name=f"{name}/ReduceMean")
    epsilon = number("epsilon", node.attributes.get_float("epsilon", 1e-5))
    variance = tape.op("Add", [mean, epsilon], name=f"{name}/Add")
    result = tape.op("Div", [wide, tape.op("Sqrt", [variance], name=f"{name}/Sqrt")], name=f"{name}/Div")
    if is_half:
        result = tape.op("Cast", [result], {"to": x.dtype}, name=f"{name}/to_half")
    result = tape.op("Mul", [result, operand(node, 1)], name=f"{name}/Mul")
    graph.replace([node], tape, node.outputs[0], result)
