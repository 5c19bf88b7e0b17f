"""Follow the axis of tokens through one operator."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import array, constant, dims
from vitdeploy.session import Array

ELEMENT_WISE = {
    "Add", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
    "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Swish", "Tanh", "Where",
}  # fmt: skip
"""Element-wise operators, with ONNX's broadcasting."""

NORMS = {"LayerNormalization", "RMSNormalization"}
CORE_INPUTS = 4  # q, k, v and bias; an attention with more keeps a cache

Shape = tuple[int | None, ...]


def read_selection(node: ir.Node, value: ir.Value, shape: Shape) -> tuple[int, Array] | None:
    """Return the axis and the indices that a Gather or Slice selects from `value`. Indices of rank 0 drop the axis."""
    if node.domain != "" or not node.inputs or node.inputs[0] is not value:
        return None
    axis, indices = None, None
    if node.op_type == "Gather" and constant(node.inputs[1]) is not None:
        axis, indices = node.attributes.get_int("axis", 0), array(node.inputs[1])
    elif node.op_type == "Slice" and all(constant(v) is not None for v in node.inputs[1:]) and len(node.inputs) > 3:
        starts, ends, axes, *steps = [array(v).reshape(-1).tolist() for v in node.inputs[1:]]
        if len(axes) == 1:
            axis = axes[0]
            size = shape[axis % len(shape)]
            indices = None if size is None else np.arange(size)[slice(starts[0], ends[0], steps[0][0] if steps else 1)]
    if axis is None or indices is None or indices.ndim > 1 or not 0 < axis % len(shape) < len(shape) - 1:
        return None  # the first axis is the batch, the last one channels
    size = shape[axis % len(shape)]
    return None if size is None else (axis % len(shape), indices.astype(np.int64) % size)


def find_input_axes(node: ir.Node, axis: int, count: int) -> dict[int, int] | None:
    """Return the axis of tokens in each input of `node` that has one.

    Return None if a token on `axis` of the output depends on other tokens of the inputs.
    """
    shapes = [None if v is None else dims(v) for v in node.inputs]
    output, op = dims(node.outputs[0]), node.op_type
    has_one_output = not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    if node.domain != "" or not has_one_output or output is None or not shapes or shapes[0] is None:
        return None
    if op in ELEMENT_WISE:
        return find_broadcast_axes(shapes, len(output), axis, count)
    if op in NORMS:
        return {0: axis} if axis < node.attributes.get_int("axis", -1) % len(output) else None
    if op == "MatMul":
        is_linear = constant(node.inputs[1]) is not None and len(shapes[1] or ()) == 2
        return {0: axis} if is_linear and len(shapes[0]) == len(output) and axis < len(output) - 1 else None
    if op == "Transpose":
        perm = node.attributes.get_ints("perm") if "perm" in node.attributes else range(len(output))[::-1]
        return {0: perm[axis]}
    if op == "Reshape":
        input_axis = find_reshape_axis(shapes[0], output, axis)
        if input_axis is None or constant(node.inputs[1]) is None or not _keeps_tokens(node, axis, input_axis):
            return None
        return {0: input_axis}
    if op == "Attention":
        return _find_query_axes(node, shapes, axis, count)
    return None


def find_broadcast_axes(shapes: Iterable[Shape | None], rank: int, axis: int, count: int) -> dict[int, int] | None:
    axes = {}
    for index, shape in enumerate(shapes):
        if shape is None:
            return None
        input_axis = axis - rank + len(shape)
        if input_axis >= 0 and shape[input_axis] != 1:
            if shape[input_axis] != count:
                return None
            axes[index] = input_axis
    return axes


def _find_query_axes(node: ir.Node, shapes: list[Shape | None], axis: int, count: int) -> dict[int, int] | None:
    """Return the axis of queries in q and the bias of an attention: its queries are independent of each other."""
    inputs = [v for v in node.inputs if v is not None]
    is_plain = len(inputs) <= CORE_INPUTS and not node.attributes.get_int("is_causal", 0)
    if not is_plain or axis != 2 or len(shapes[0] or ()) != 4:  # (batch, heads, tokens, size)
        return None
    bias = None if len(shapes) < CORE_INPUTS else node.inputs[3]
    bias_axes = {} if bias is None else find_broadcast_axes([dims(bias)], 4, axis, count)
    return None if bias_axes is None else {0: axis, **({3: bias_axes[0]} if bias_axes else {})}


def find_reshape_axis(before: Shape, after: Shape, axis: int) -> int | None:
    """Return the input axis that a Reshape keeps as `axis`: the sizes before and behind both have equal products."""
    for input_axis, size in enumerate(before):
        is_same = size == after[axis] and _count_numbers(before[:input_axis]) == _count_numbers(after[:axis])
        if is_same and _count_numbers(before[input_axis + 1 :]) == _count_numbers(after[axis + 1 :]):
            return input_axis
    return None


def _count_numbers(shape: Shape) -> tuple[int, int]:
    """Return the product of the known sizes of a shape, and how many sizes vary."""
    return math.prod(n for n in shape if n is not None), shape.count(None)


def _keeps_tokens(node: ir.Node, axis: int, input_axis: int) -> bool:
    """Return whether a Reshape's size at the axis of tokens is a number, or a 0 that copies the input's tokens."""
    is_zero = array(node.inputs[1]).tolist()[axis] == 0
    return not is_zero or (axis == input_axis and not node.attributes.get_int("allowzero", 0))


def set_size(value: ir.Value, axis: int, count: int) -> None:
    if value.shape is not None:
        value.shape = ir.Shape([count if index == axis else size for index, size in enumerate(value.shape)])
