"""Fit the Q/DQ pairs and weights that NNCF wrote to what compilers take."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, operand, producer
from vitdeploy.quantize.qdq import CodeType
from vitdeploy.quantize.weights import WeightStorage

_TO_UNSIGNED = 128
MOVES = ("Transpose", "Reshape", "Slice", "Squeeze", "Unsqueeze", "Gather", "Split", "Identity")
"""Operators that carry codes to a product without changing them."""


def fit_codes(graph: Graph, linears: Collection[str], code_type: CodeType) -> None:
    """Give the activations of linears codes of one type, in place.

    uint8: every int8 pair is shifted by 128, which changes no number. int8: NNCF takes uint8 around 0 for what is never
    negative. Codes up to 127 in place of 255 cover the same range with twice the step.

    Args:
        graph: with NNCF's pairs.
        linears: the names of the products.
        code_type: "uint8" or "int8".
    """
    for quantize, dequantize in list(_activation_pairs(graph)):
        feeds_linear = any(use.node.name in linears for use in dequantize.outputs[0].uses())
        zero = array(operand(quantize, 2))
        if not feeds_linear or zero.dtype == np.dtype(code_type):
            continue
        scale = array(operand(quantize, 1))
        if code_type == "uint8":
            zero = (zero.astype(np.int32) + _TO_UNSIGNED).astype(np.uint8)
        else:
            scale, zero = (scale * np.float32(255 / 127)).astype(np.float32), np.zeros_like(zero, np.int8)
        constants = [
            graph.initializer(scale, f"{quantize.name}/scale"), graph.initializer(zero, f"{quantize.name}/zero_point"),
        ]  # fmt: skip
        for node in (quantize, dequantize):
            for index, value in enumerate(constants, start=1):
                node.replace_input_with(index, value)
        codes = quantize.outputs[0]
        codes.type = ir.TensorType(ir.DataType.from_numpy(zero.dtype))


def drop_pairs_elsewhere(graph: Graph, linears: Collection[str]) -> None:
    """Remove the pairs on activations that no linear of these names reads, such as those inside of attention."""
    for quantize, dequantize in list(_activation_pairs(graph)):
        if any(use.node.name in linears for use in dequantize.outputs[0].uses()):
            continue
        result = dequantize.outputs[0]
        ir.convenience.replace_all_uses_with(result, operand(quantize, 0))
        graph.model.graph.remove([dequantize, quantize], safe=True)


def tidy_weights(graph: Graph) -> None:
    """Write the scales of weights as vitdeploy does, in place: along axis 1, without a zero point of zeros."""
    for node in _weights(graph):
        codes, rank = constant(node.inputs[0]), len(array(operand(node, 0)).shape)
        zero = array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        axis = node.attributes.get_int("axis", 1)
        if axis < 0:
            node.attributes["axis"] = ir.AttrInt64("axis", axis + rank)
        if zero is not None and codes is not None and codes.dtype == ir.DataType.INT8 and not zero.any():
            node.resize_inputs(2)


def group_weights(graph: Graph, storage: WeightStorage) -> None:
    """Repeat the one scale of each output channel for groups of inputs, for a compiler that needs groups."""
    for node in _weights(graph):
        scale, codes = array(operand(node, 1)), array(operand(node, 0))
        if codes.ndim != 2 or scale.ndim != 1 or len(node.inputs) > 2:
            continue
        rows = storage.group_rows(len(codes))
        repeated = np.tile(scale, (len(codes) // rows, 1))
        node.replace_input_with(1, graph.initializer(repeated, f"{node.name}/scales"))
        node.attributes["axis"] = ir.AttrInt64("axis", 0)
        node.attributes["block_size"] = ir.AttrInt64("block_size", rows)


def count_smoothed(graph: Graph) -> int:
    """Return the number of inputs whose outliers SmoothQuant moved into weights."""
    return sum(node.op_type == "Mul" and "nncf_smooth_quant" in (node.name or "") for node in graph.nodes)


def has_pair(node: ir.Node, index: int) -> bool:
    """Return whether an input of a node comes from codes, perhaps moved on the way."""
    value = node.inputs[index]
    while (move := producer(value, *MOVES)) is not None:
        value = move.inputs[0]
    return producer(value, "DequantizeLinear") is not None


def bits_of_weight(node: ir.Node) -> int | None:
    """Return the bits of the codes of a product's weight; None if it is in float."""
    weight = producer(node.inputs[1], "DequantizeLinear")
    codes = constant(weight.inputs[0]) if weight is not None else None
    return None if codes is None else 4 if codes.dtype in (ir.DataType.INT4, ir.DataType.UINT4) else 8


def _activation_pairs(graph: Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    for node in graph.nodes:
        quantize = producer(node.inputs[0], "QuantizeLinear") if node.op_type == "DequantizeLinear" else None
        if quantize is not None:
            yield quantize, node


def _weights(graph: Graph) -> Iterator[ir.Node]:
    """Yield the DequantizeLinears of constants."""
    return (n for n in list(graph.nodes) if n.op_type == "DequantizeLinear" and constant(n.inputs[0]) is not None)
