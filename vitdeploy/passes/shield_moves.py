"""Keep the moves of heads out of OpenVINO's attention kernel where it would read what it has overwritten."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, dims, only_consumer, operand
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._token_axis import ELEMENT_WISE

_SWAP = [0, 2, 1, 3]
_THROUGH = ELEMENT_WISE | {"QuantizeLinear", "DequantizeLinear"}


class ShieldMoves(Pass):
    """Move heads and tokens with a further axis of size 1, before and behind attention with as many heads as queries.

        q (B, N, N, d) ─ Transpose (0, 2, 1, 3) ─ MatMul ─ Softmax
     ─▶ q (B, N, N, d) ─ Reshape (1, B, N, N, d) ─ Transpose (0, 1, 3, 2, 4) ─ Reshape (B, N, N, d) ─ MatMul ─ Softmax

    The attention kernel of OpenVINO 2026.4.1 on CPUs takes such Transposes in, and writes its result over the queries
    if both have one shape. Where as many heads as queries make the shapes equal (four heads on windows of 2x2), and
    only one of both is moved inside, it overwrites queries that are still to be read, and computes other numbers. It
    does not take in a Transpose of five axes, which is a small kernel of its own. Left alone: keys and values, which
    are not overwritten, and shapes that vary, in which OpenVINO computes right numbers (and refuses the five axes).
    """

    def apply(self, graph: Graph) -> PassResult:
        """Rewrite every such Transpose of queries or results."""
        graph.infer_shapes()
        moves = [node for node in graph.nodes if node.op_type == "Transpose" and _is_at_risk(node)]
        for node in moves:
            _shield(graph, node)
        return PassResult(len(moves))


def _is_at_risk(move: ir.Node) -> bool:
    """Return whether a Transpose swaps heads and as many queries."""
    shape = dims(operand(move, 0))
    perm = move.attributes.get("perm")
    if perm is None or list(perm.as_ints()) != _SWAP or shape is None or len(shape) != 4 or None in shape:
        return False
    if shape[1] != shape[2] or shape[1] == 1:
        return False
    moved = move.outputs[0]
    return _is_result(operand(move, 0)) or any(_is_left_operand(moved, use.node) for use in moved.uses())


def _is_left_operand(value: ir.Value, reader: ir.Node) -> bool:
    """Return whether a value is the left operand of a product, perhaps behind operators for each element."""
    while reader.op_type in _THROUGH:
        value = reader.outputs[0]
        following = only_consumer(value)
        if following is None:
            return False
        reader = following
    return reader.op_type == "MatMul" and reader.inputs[0] is value


def _is_result(value: ir.Value) -> bool:
    """Return whether a value is a product of probabilities, perhaps behind operators for each element."""
    product = _computing(value)
    if product is None or product.op_type != "MatMul":
        return False
    probabilities = _computing(operand(product, 0))
    return probabilities is not None and probabilities.op_type == "Softmax"


def _computing(value: ir.Value) -> ir.Node | None:
    """Return the node that computes a value, before operators for each element."""
    node = value.producer()
    while node is not None and node.op_type in _THROUGH:
        node = operand(node, 0).producer()
    return node


def _shield(graph: Graph, move: ir.Node) -> None:
    source, name, tape = operand(move, 0), move.name, ir.tape.Tape()
    batch, _, count, size = dims(source) or ()

    def reshape(value: ir.Value, sizes: list[int | None], label: str) -> ir.Value:
        shape = tape.initializer(ir.tensor(np.array(sizes, np.int64), name=f"{name}/{label}/shape"))
        return tape.op("Reshape", [value, shape], name=f"{name}/{label}")

    five = reshape(source, [1, batch, count, count, size], "five_axes")
    moved = tape.op("Transpose", [five], {"perm": [0, 1, 3, 2, 4]}, name=f"{name}/moved")
    graph.replace([move], tape, move.outputs[0], reshape(moved, [batch, count, count, size], "four_axes"))
