"""Lower INT8 linears to ONNX Runtime's integer kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.dialect import CONTRIB
from vitdeploy.graph.model import Graph, array, bias_behind, constant, operand, producer
from vitdeploy.passes import Pass, PassResult

_TO_UNSIGNED = 128


class LowerIntegerLinears(Pass):
    """Replace Q/DQ pairs around a MatMul by an integer product that reads the quantized activation.

        x ─ Q ─ DQ ─┐                        x ─ Q (uint8) ─ MatMulIntegerToFloat(W int8, scales, bias)
            W ─ DQ ─ MatMul ─ Add b   ─▶

    Without this pass, ONNX Runtime first fuses MatMul and Add to a Gemm, for which it has no integer kernel without an
    INT32 bias. Every linear then runs in float, and the quantization costs time on top (seen in the profile of 1.32).
    Activations become unsigned, because x86 multiplies u8 by s8. Shifting the zero point by 128 changes no number. Left
    alone and refused: a weight that is not symmetric with one scale for each output channel, and an activation that
    does not have 8 bits and one scale.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Lower every quantized linear."""
        refused: dict[str, str] = {}
        fired = 0
        unsigned: dict[ir.Node, tuple[ir.Value, ir.Value]] = {}
        for node in [n for n in graph.nodes if n.op_type == "MatMul" and n.domain == ""]:
            activation, weight = (producer(v, "DequantizeLinear") for v in node.inputs[:2])
            quantize = producer(activation.inputs[0], "QuantizeLinear") if activation is not None else None
            if activation is None or weight is None or quantize is None:
                continue
            if reason := _unsupported_weight(weight) or _unsupported_activation(quantize):
                refused[node.name or ""] = reason
                continue
            _rewrite(graph, node, quantize, weight, unsigned)
            fired += 1
        if fired:
            graph.model.opset_imports[CONTRIB] = 1
        return PassResult(fired, refused)


def _unsupported_weight(weight: ir.Node) -> str | None:
    codes = constant(weight.inputs[0])
    zero = constant(weight.inputs[2]) if len(weight.inputs) > 2 else None
    if codes is None or codes.dtype != ir.DataType.INT8:
        return "its weight is not an int8 constant"
    if zero is not None and np.any(zero.numpy()):
        return "its weight is not symmetric"
    scale = constant(weight.inputs[1])
    axis = weight.attributes.get_int("axis", 1)
    if scale is None or len(scale.shape) > 1 or (scale.size > 1 and axis not in (-1, 1)):
        return "its weight does not have one scale for each output channel"
    return None


def _unsupported_activation(quantize: ir.Node) -> str | None:
    scale, zero = constant(quantize.inputs[1]), _zero_point(quantize)
    if scale is None or scale.size != 1:
        return "its activation has more than one scale"
    if zero is None or zero.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return "its activation does not have a zero point of 8 bits"
    return None


def _zero_point(quantize: ir.Node) -> ir.TensorProtocol | None:
    return constant(quantize.inputs[2]) if len(quantize.inputs) > 2 else None


def _rewrite(
    graph: Graph,
    node: ir.Node,
    quantize: ir.Node,
    weight: ir.Node,
    unsigned: dict[ir.Node, tuple[ir.Value, ir.Value]],
) -> None:
    tape = ir.tape.Tape()
    if quantize not in unsigned:
        unsigned[quantize] = _make_unsigned(tape, quantize)
    codes, zero = unsigned[quantize]
    inputs = [codes, weight.inputs[0], quantize.inputs[1], weight.inputs[1], zero]
    old = [node]
    if (bias_add := bias_behind(node)) is not None:
        add, bias = bias_add
        old, inputs = [node, add], [*inputs, None, bias]
    result = tape.op("MatMulIntegerToFloat", inputs, domain=CONTRIB, name=node.name)
    graph.replace(old, tape, old[-1].outputs[0], result)


def _make_unsigned(tape: ir.tape.Tape, quantize: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Return the codes in uint8 and their zero point. Record the change on `tape` unless they are unsigned already."""
    zero = array(operand(quantize, 2))
    if zero.dtype == np.uint8:
        return quantize.outputs[0], operand(quantize, 2)
    shifted = (zero.astype(np.int32) + _TO_UNSIGNED).astype(np.uint8)
    point = tape.initializer(ir.tensor(shifted, name=f"{quantize.name}/zero_point_u8"))
    codes = tape.op("QuantizeLinear", [*quantize.inputs[:2], point], name=f"{quantize.name}/u8")
    return codes, point
