"""The axes of an operator's inputs that become the axes of its output."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product

import onnx_ir as ir

from vitdeploy.graph.model import constant, dims

Pairs = list[tuple[int, int]]
"""(axis of the input, axis of the output) for axes along which positions correspond."""
Sizes = tuple[int | None, ...]

_KEPT = frozenset({
    "Abs", "Add", "And", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat",
    "Cos", "CumSum", "DequantizeLinear", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Expand", "Floor",
    "GatherElements", "Gelu", "Greater", "GreaterOrEqual", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax",
    "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "LogSoftmax", "LpNormalization", "Max", "MaxPool", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or",
    "PRelu", "Pad", "Pow", "QuantizeLinear", "RMSNormalization", "Reciprocal", "Relu", "Resize", "Round",
    "ScatterElements", "ScatterND", "Selu", "Sigmoid", "Sign", "Sin", "Slice", "Softmax", "Softplus", "Softsign",
    "Split", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Trilu", "Where", "Xor",
})  # fmt: skip
"""Operators whose output has the axes of their inputs, aligned from the right."""
_PARAMETERS = frozenset({
    "BatchNormalization", "Clip", "CumSum", "DequantizeLinear", "Dropout", "Expand", "GatherElements",
    "GroupNormalization", "InstanceNormalization", "LayerNormalization", "Pad", "QuantizeLinear", "RMSNormalization",
    "Resize", "Slice", "Split", "Tile", "TopK", "Trilu",
})  # fmt: skip
"""Operators of `_KEPT` whose first input alone has the data."""
_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_REDUCTIONS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
})  # fmt: skip
_UNRELATED = frozenset({"Attention", "ConstantOfShape", "Range", "Shape", "Size"})
"""Operators whose output has new axes."""


def pair_axes(node: ir.Node, index: int, output: ir.Value) -> Pairs | None:
    """Return the axes of input `index` that live on in `output`; None if they are not known.

    An axis that an operator sums over, or broadcasts, has no pair.
    """
    before, after = dims(node.inputs[index]), dims(output)
    if node.op_type in _UNRELATED:
        return []
    if node.domain != "" or before is None or after is None:
        return None
    if node.op_type.startswith("Scatter") and index == 2 and len(before) != len(after):
        return None
    if node.op_type in _KEPT:
        is_parameter = (index > 0 and node.op_type in _PARAMETERS) or (index == 1 and "Scatter" in node.op_type)
        return [] if is_parameter else _align(before, after)
    if node.op_type in _RESHAPES:
        return [] if index else _pair_reshaped(before, after)
    if node.op_type in _REDUCTIONS:
        return [] if index else _pair_reduced(node, len(before))
    pair = _RULES.get(node.op_type)
    return None if pair is None else pair(node, index, before, after)


def is_reduction(node: ir.Node) -> bool:
    """Return whether the operator sums over axes, or takes their mean, maximum and the like."""
    return node.domain == "" and node.op_type in _REDUCTIONS


def _align(before: Sizes, after: Sizes) -> Pairs:
    shift = len(after) - len(before)
    pairs = [(axis, axis + shift) for axis in range(len(before)) if axis + shift >= 0]
    return [(a, b) for a, b in pairs if before[a] != 1 or after[b] == 1]


def _pair_reshaped(before: Sizes, after: Sizes) -> Pairs:
    """Pair axes that cover the same steps in memory: 12 of (4, 3, 2) -> (12, 2) covers what 4 and 3 cover."""
    spans = list(enumerate(_spans(before))), list(enumerate(_spans(after)))
    return [(a, b) for (a, one), (b, other) in product(*spans) if max(one[0], other[0]) < min(one[1], other[1])]


def _spans(sizes: Sizes) -> list[tuple[float, float]]:
    """Return where each axis begins and ends in memory, in elements; left of a size that varies it ends nowhere."""
    spans, step, is_known = [], 1, True
    for size in reversed(sizes):
        is_known = is_known and size is not None
        end = step * size if is_known and size is not None else math.inf
        spans.append((float(step), float(end)))
        step = step * size if is_known and size is not None else step
    return spans[::-1]


def _pair_reduced(node: ir.Node, rank: int) -> Pairs | None:
    axes = _read_axes(node)
    if axes is None:
        return None
    gone = {axis % rank for axis in axes} or set(range(rank))
    left = [axis for axis in range(rank) if axis not in gone]
    if node.attributes.get_int("keepdims", 1):
        return [(axis, axis) for axis in left]
    return [(axis, number) for number, axis in enumerate(left)]


def _read_axes(node: ir.Node) -> Iterable[int] | None:
    """Return the axes of a reduction; empty for all; None if they are computed."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = constant(node.inputs[1])
        return None if tensor is None else [int(axis) for axis in tensor.numpy().reshape(-1)]
    return node.attributes.get_ints("axes", ())


def _pair_transposed(node: ir.Node, index: int, before: Sizes, after: Sizes) -> Pairs:  # noqa: ARG001  one signature
    perm = node.attributes.get_ints("perm", tuple(reversed(range(len(before)))))
    return [(axis, place) for place, axis in enumerate(perm)]


def _pair_gather(node: ir.Node, index: int, before: Sizes, after: Sizes) -> Pairs:
    data = dims(node.inputs[0])
    axis = node.attributes.get_int("axis", 0)
    if index or data is None:
        return []
    axis %= len(before)
    more = len(after) - len(before)  # the rank of the indices, less one
    chosen = [(axis, axis + number) for number in range(more + 1)]
    others = [(a, a if a < axis else a + more) for a in range(len(before)) if a != axis]
    return [*others, *chosen]


def _pair_matmul(node: ir.Node, index: int, before: Sizes, after: Sizes) -> Pairs | None:
    if index > 1:
        return []
    ranks = [len(shape) for shape in (dims(value) for value in node.inputs[:2]) if shape is not None]
    if len(ranks) < 2 or min(ranks) < 2:
        return None
    batch = _align(before[:-2], after[:-2])
    row, column = (len(before) - 2, len(after) - 2), (len(before) - 1, len(after) - 1)
    return [*batch, row if index == 0 else column]


def _pair_gemm(node: ir.Node, index: int, before: Sizes, after: Sizes) -> Pairs:
    if index > 1:
        return _align(before, after)
    turned = bool(node.attributes.get_int("transB" if index else "transA", 0))
    return [((0 if turned else 1) if index else (1 if turned else 0), index)]


def _pair_conv(node: ir.Node, index: int, before: Sizes, after: Sizes) -> Pairs:  # noqa: ARG001
    if index:
        return [(0, 1)] if index == 1 else []
    keeps_channels = before[1] is not None and node.attributes.get_int("group", 1) == before[1] > 1
    return [(axis, axis) for axis in range(len(before)) if axis != 1 or keeps_channels]


def _pair_einsum(node: ir.Node, index: int, before: Sizes, after: Sizes) -> Pairs | None:
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    operands, arrow, result = equation.partition("->")
    letters = operands.split(",")
    if not arrow or "." in equation or index >= len(letters):
        return None
    if len(letters[index]) != len(before) or len(result) != len(after):
        return None
    return [(axis, result.index(letter)) for axis, letter in enumerate(letters[index]) if letter in result]


def _pair_patches(node: ir.Node, index: int, before: Sizes, after: Sizes) -> Pairs:  # noqa: ARG001
    """Pair (batch, channels · block, patches) with (batch, channels, …): a pixel is a place in a patch."""
    image = range(2, len(after))
    return [] if index else [(0, 0), (1, 1), *((axis, place) for axis in (1, 2) for place in image)]


_RULES = {
    "Col2Im": _pair_patches,
    "Conv": _pair_conv,
    "Einsum": _pair_einsum,
    "Gather": _pair_gather,
    "Gemm": _pair_gemm,
    "MatMul": _pair_matmul,
    "MatMulInteger": _pair_matmul,
    "Transpose": _pair_transposed,
}
