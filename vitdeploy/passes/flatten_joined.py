"""Quantize joined tokens as a matrix, which OpenVINO does not quantize in parts."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, dims, operand
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._token_axis import ELEMENT_WISE


class FlattenJoined(Pass):
    """Put a Reshape to a matrix and back around the Q/DQ pair of values that a Concat joins.

        class token, patches ─ Concat (B, N, C) ─ Q ─ DQ ─ MatMul
     ─▶ class token, patches ─ Concat (B, N, C) ─ Reshape (B · N, C) ─ Q ─ DQ ─ Reshape (B, N, C) ─ MatMul

    OpenVINO 2026.4.1 moves the pair before the Concat, gets a zero point for each token, and refuses the product behind
    it: "Input shape dimension … cannot be broadcasted". It does so for any axis but the last one, and through one
    element-wise operator. A Reshape costs nothing. Left alone: other values, joined channels that convolutions read,
    which it accepts and whose layout a Reshape would lose, pairs with a scale for each channel, and shapes of which
    more than one size varies.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Flatten every such value."""
        graph.infer_shapes()
        pairs = [node for node in graph.nodes if node.op_type == "QuantizeLinear" and _is_joined(node)]
        for node in pairs:
            _flatten(graph, node)
        return PassResult(len(pairs))


def _is_joined(quantize: ir.Node) -> bool:
    """Return whether a Concat joins the quantized value, not along its last axis, directly or before one operator."""
    value, scale = operand(quantize, 0), constant(quantize.inputs[1])
    shape = dims(value)
    if shape is None or len(shape) < 3 or not shape[-1] or shape.count(None) > 1 or scale is None or scale.size != 1:
        return False
    if any(use.node.op_type != "DequantizeLinear" for use in quantize.outputs[0].uses()):
        return False
    node = value.producer()
    if node is not None and node.op_type in ELEMENT_WISE | {"Max", "Min"}:
        computed = [v for v in node.inputs if v is not None and constant(v) is None]
        node = computed[0].producer() if len(computed) == 1 else None
    if node is None or node.op_type != "Concat" or node.domain != "":
        return False
    axis = node.attributes.get_int("axis", 0) % len(shape)
    joins_channels = axis == 1 and all(reader.op_type == "Conv" for reader in _list_readers(quantize))
    return axis != len(shape) - 1 and not joins_channels


def _list_readers(quantize: ir.Node) -> list[ir.Node]:
    """List the operators that read the dequantized value."""
    return [reader.node for use in quantize.outputs[0].uses() for reader in use.node.outputs[0].uses()]


def _flatten(graph: Graph, quantize: ir.Node) -> None:
    value, name = operand(quantize, 0), quantize.name
    shape = dims(value) or ()
    tape = ir.tape.Tape()
    matrix = _reshape(tape, value, (-1, shape[-1] or 0), f"{name}/matrix")
    graph.insert_before(quantize, tape)
    quantize.replace_input_with(0, matrix)
    quantize.outputs[0].shape = None
    for use in [*quantize.outputs[0].uses()]:
        dequantized = use.node.outputs[0]
        readers = [*dequantized.uses()]
        back = ir.tape.Tape()
        whole = _reshape(back, dequantized, tuple(-1 if n is None else n for n in shape), f"{use.node.name}/tokens")
        whole.shape, whole.type = dequantized.shape, dequantized.type
        dequantized.shape = None
        graph.insert_before(graph.find_first(reader.node for reader in readers), back)
        for reader in readers:
            reader.node.replace_input_with(reader.idx, whole)


def _reshape(tape: ir.tape.Tape, value: ir.Value, sizes: tuple[int, ...], name: str) -> ir.Value:
    shape = tape.initializer(ir.tensor(np.array(sizes, np.int64), name=f"{name}/shape"))
    result = tape.op("Reshape", [value, shape], name=name)
    result.type = value.type
    return result
