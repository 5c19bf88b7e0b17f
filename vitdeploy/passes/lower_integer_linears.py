"""Write each INT8 linear as the one integer kernel of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.dialect import CONTRIB
from vitdeploy.graph.model import Graph, constant, only_consumer, producer
from vitdeploy.passes import Pass, PassResult

_TO_UNSIGNED = 128


class LowerIntegerLinears(Pass):
    """Q/DQ pairs around a MatMul become an integer product that reads the quantized activation.

        x ─ Q ─ DQ ─┐                        x ─ Q (uint8) ─ MatMulIntegerToFloat(W int8, scales, bias)
            W ─ DQ ─ MatMul ─ Add b   ─▶

    Left as Q/DQ, ONNX Runtime first fuses MatMul and Add to Gemm, for which it has no integer kernel without an INT32
    bias: every linear then runs in float, with the quantization on top (seen in the profile of 1.32). Activations
    become unsigned, because x86 multiplies u8 by s8; shifting the zero point by 128 changes no number. A weight
    that is not symmetric is left alone and refused.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Lower every quantized linear."""
        refused: dict[str, str] = {}
        fired = 0
        quantized: dict[ir.Value, ir.Value] = {}
        for node in [n for n in graph.nodes if n.op_type == "MatMul" and n.domain == ""]:
            activation, weight = (producer(v, "DequantizeLinear") for v in node.inputs[:2])
            if activation is None or weight is None or producer(activation.inputs[0], "QuantizeLinear") is None:
                continue
            if reason := _unsupported(weight):
                refused[node.name or ""] = reason
                continue
            _rewrite(graph, node, activation, weight, quantized)
            fired += 1
        if fired:
            graph.model.opset_imports[CONTRIB] = 1
        return PassResult(fired, refused)


def _unsupported(weight: ir.Node) -> str | None:
    codes = constant(weight.inputs[0])
    zero = constant(weight.inputs[2]) if len(weight.inputs) > 2 else None
    if codes is None or codes.dtype != ir.DataType.INT8:
        return "its weight is not a constant of int8"
    if zero is not None and np.any(zero.numpy()):
        return "its weight is not symmetric"
    return None


def _rewrite(
    graph: Graph, node: ir.Node, activation: ir.Node, weight: ir.Node, quantized: dict[ir.Value, ir.Value]
) -> None:
    tape = ir.tape.Tape()
    source = activation.inputs[0]
    assert source is not None
    if source not in quantized:
        quantized[source] = _unsigned(tape, source)
    codes = quantized[source]
    quantize = codes.producer()
    assert quantize is not None
    output, old_nodes, bias = node.outputs[0], [node], None
    add = only_consumer(output, "Add")
    if add is not None:
        operands = [v for v in add.inputs if v is not output]
        tensor = constant(operands[0]) if operands else None
        if tensor is not None and len(tensor.shape) == 1:
            bias, output, old_nodes = operands[0], add.outputs[0], [node, add]
    inputs = [codes, weight.inputs[0], quantize.inputs[1], weight.inputs[1], quantize.inputs[2], None, bias]
    while inputs[-1] is None:
        inputs.pop()
    result = tape.op("MatMulIntegerToFloat", inputs, domain=CONTRIB, name=node.name)
    graph.replace(old_nodes, tape, output, result)


def _unsigned(tape: ir.tape.Tape, codes: ir.Value) -> ir.Value:
    """The same quantization with uint8 codes, recorded on `tape` unless it is unsigned already."""
    quantize = codes.producer()
    assert quantize is not None
    zero = constant(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    if zero is None or zero.dtype == ir.DataType.UINT8:
        return codes
    shifted = (zero.numpy().astype(np.int32) + _TO_UNSIGNED).astype(np.uint8)
    point = tape.initializer(ir.tensor(shifted, name=f"{quantize.name}/zero_point_u8"))
    return tape.op("QuantizeLinear", [quantize.inputs[0], quantize.inputs[1], point], name=f"{quantize.name}/u8")
