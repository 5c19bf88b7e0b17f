"""Lower linears with weights in blocks to ONNX Runtime's MatMulNBits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.dialect import CONTRIB
from vitdeploy.graph.model import Graph, array, bias_behind, constant, operand, producer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.session import Array

_SMALLEST_BLOCK = 16
_LARGEST_BLOCK = 256
_BIAS_INPUT = 5
"""The index of MatMulNBits' bias. Optional inputs before it may be left out."""
_FLOAT32_ACTIVATIONS = 1
"""MatMulNBits' accuracy_level for activations in float32. Level 4 would round them to int8."""


class LowerBlockWeights(Pass):
    """Replace a dequantized weight and its product by one operator, which reads the codes.

        W codes ─ DequantizeLinear ─ MatMul ─ Add b   ─▶   x ─ MatMulNBits(codes, scales, zero points, b)

    Without this pass, ONNX Runtime writes such an operator itself at accuracy level 4, which multiplies in int8, or it
    unpacks the weights to float32 at load time. The operator's blocks lie along K. Their size is a power of two from 16
    to 256 rows. Left alone and refused: any other weight, and a linear whose activation is quantized too.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Lower every linear whose weight alone is quantized."""
        refused: dict[str, str] = {}
        fired = 0
        for node in [n for n in graph.nodes if n.op_type == "MatMul" and n.domain == ""]:
            weight = producer(node.inputs[1], "DequantizeLinear")
            if weight is None or constant(weight.inputs[0]) is None:
                continue
            if producer(node.inputs[0], "DequantizeLinear") is not None:
                refused[node.name or ""] = "its activation is quantized as well"
            elif reason := _unsupported_reason(weight):
                refused[node.name or ""] = reason
            else:
                _rewrite(graph, node, weight)
                fired += 1
        if fired:
            graph.model.opset_imports[CONTRIB] = 1
        return PassResult(fired, refused)


def _unsupported_reason(weight: ir.Node) -> str | None:
    codes, scale = array(weight.inputs[0]), array(weight.inputs[1])
    if scale.ndim != codes.ndim or codes.ndim != 2 or weight.attributes.get_int("axis", 1) != 0:
        return "its weight has no blocks along its input channels"
    block = weight.attributes.get_int("block_size", 0)
    if block & (block - 1) or not _SMALLEST_BLOCK <= block <= _LARGEST_BLOCK:
        return f"its blocks have {block} rows, not a power of two from {_SMALLEST_BLOCK} to {_LARGEST_BLOCK}"
    return None


def _rewrite(graph: Graph, node: ir.Node, weight: ir.Node) -> None:
    tensor = constant(weight.inputs[0])
    assert tensor is not None
    bits = 4 if tensor.dtype in (ir.DataType.INT4, ir.DataType.UINT4) else 8
    block = weight.attributes.get_int("block_size", 0)
    codes, scale = array(weight.inputs[0]), array(weight.inputs[1])
    zero = array(weight.inputs[2]) if len(weight.inputs) > 2 else None
    shift = 0 if tensor.dtype in (ir.DataType.UINT4, ir.DataType.UINT8) else 1 << (bits - 1)
    packed = _pack(codes.astype(np.int32) + shift, bits).reshape(codes.shape[1], len(scale), block * bits // 8)
    tape = ir.tape.Tape()
    inputs: list[ir.Value | None] = [
        operand(node, 0),
        tape.initializer(ir.tensor(packed, name=f"{node.name}/weight_blocks")),
        tape.initializer(ir.tensor(np.ascontiguousarray(scale.T), name=f"{node.name}/weight_scales")),
    ]
    if zero is not None:
        points = _pack(zero.astype(np.int32) + shift, bits)
        inputs.append(tape.initializer(ir.tensor(points, name=f"{node.name}/weight_zero_points")))
    old = [node]
    if (bias_add := bias_behind(node)) is not None:
        add, bias = bias_add
        old, inputs = [node, add], [*inputs, *[None] * (_BIAS_INPUT - len(inputs)), bias]
    attributes = {"K": codes.shape[0], "N": codes.shape[1], "bits": bits, "block_size": block}
    result = tape.op(
        "MatMulNBits", inputs, {**attributes, "accuracy_level": _FLOAT32_ACTIVATIONS}, domain=CONTRIB, name=node.name
    )
    graph.replace(old, tape, old[-1].outputs[0], result)


def _pack(codes: Array, bits: int) -> Array:
    """Pack codes (K, N) to bytes (N, K). Two codes of 4 bits share a byte, the first one in the lower half."""
    rows = codes.T.astype(np.uint8)
    if bits == 8:
        return np.ascontiguousarray(rows)
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    return np.asarray(rows[:, 0::2] | (rows[:, 1::2] << 4))
