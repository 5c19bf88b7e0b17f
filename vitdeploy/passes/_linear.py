"""Match linears (a product with a constant weight, and its bias), and give them other numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, dims, only_consumer, operand, producer
from vitdeploy.session import Array


@dataclass(frozen=True)
class LinearMatch:
    """x W + b: a MatMul or Conv with a constant weight, and the Add of its bias if that is a separate node.

    Attributes:
        product: the MatMul or the Conv.
        add: the Add behind it, if it adds one constant to each channel.
        axis: the output's channel axis, counted from the front.
        weight: (inputs, channels) of a MatMul, (channels, inputs / groups, ...) of a Conv.
        bias: (channels,), or None.
    """

    product: ir.Node
    add: ir.Node | None
    axis: int
    weight: Array
    bias: Array | None

    @property
    def output(self) -> ir.Value:
        """The output, bias included."""
        return (self.add or self.product).outputs[0]

    @property
    def nodes(self) -> list[ir.Node]:
        """The product, and the Add of its bias."""
        return [self.product] if self.add is None else [self.product, self.add]

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return int(self.weight.shape[0 if self.product.op_type == "Conv" else -1])


def match_linear(product: ir.Node | None) -> LinearMatch | None:
    """Match a MatMul or Conv with constant numbers, and the Add of its bias."""
    if product is None or product.domain != "" or product.op_type not in ("MatMul", "Conv"):
        return None
    if operand(product, 0).graph is not product.graph:
        return None  # it is in a branch of an If
    weight, rank = constant(product.inputs[1]), len(dims(product.outputs[0]) or ())
    conv_bias = product.inputs[2] if len(product.inputs) > 2 else None
    if weight is None or not rank or (conv_bias is not None and constant(conv_bias) is None):
        return None
    if product.op_type == "MatMul" and len(weight.shape) != 2:
        return None
    axis = 1 if product.op_type == "Conv" else rank - 1
    bias = None if conv_bias is None else array(conv_bias)
    linear = LinearMatch(product, None, axis, array(product.inputs[1]), bias)
    add = only_consumer(product.outputs[0], "Add")
    other = None if add is None else _other_input(add, product.outputs[0])
    summand = broadcast_per_channel(other, rank, axis, linear.channels)
    if summand is None:
        return linear
    return LinearMatch(product, add, axis, linear.weight, summand.astype(np.float64) + (0.0 if bias is None else bias))


def match_linear_ending_at(value: ir.Value) -> LinearMatch | None:
    """Match the linear whose output is `value`."""
    add = producer(value, "Add")
    products = [producer(value)] if add is None else [producer(v, "MatMul", "Conv") for v in add.inputs]
    linears = (match_linear(product) for product in products)
    return next((linear for linear in linears if linear is not None and linear.output is value), None)


def match_linear_above(value: ir.Value, axis: int) -> LinearMatch | None:
    """Match the linear whose channels arrive on the `axis` of `value`.

    The operators in between may only move the channels. No value on the way may have a second reader.
    """
    while only_consumer(value) is not None:
        linear = match_linear_ending_at(value)
        if linear is not None:
            return linear if linear.axis == axis else None
        node = producer(value, "Transpose", "Reshape", "Flatten")
        before = _axis_before(node, axis) if node is not None else None
        if node is None or before is None:
            return None
        value, axis = operand(node, 0), before
    return None


def _axis_before(node: ir.Node, axis: int) -> int | None:
    """Return the input axis of the channels that `node` gives on `axis`; None if it splits or mixes them."""
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None:
        return None
    if node.op_type == "Transpose":
        return int(node.attributes.get_ints("perm", range(len(after))[::-1])[axis])
    is_kept = axis == len(after) - 1 and before[-1] == after[-1] is not None
    return len(before) - 1 if is_kept else None


def _other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return next((v for v in node.inputs if v is not value), None)


def broadcast_per_channel(value: ir.Value | None, rank: int, axis: int, channels: int) -> Array | None:
    """Return the constant behind `value` as (channels,).

    Return None if it is not constant, or if it varies along any other axis of a tensor of this rank than `axis`.
    """
    tensor = constant(value)
    if tensor is None or len(tensor.shape) > rank:
        return None
    numbers = tensor.numpy()
    shape = (1,) * (rank - numbers.ndim) + numbers.shape
    if numbers.size == 1 or (shape[axis] == channels == numbers.size):
        return np.broadcast_to(numbers.reshape(-1), (channels,))
    return None


def scale_outputs(graph: Graph, linear: LinearMatch, factor: Array, shift: Array | None = None) -> bool:
    """Turn x W + b into (x W + b) · factor + shift, both (channels,).

    Return False, and change nothing, if the data type of the weight cannot hold the new numbers.
    """
    factor = factor.astype(np.float64)
    columns = factor.reshape(-1, *[1] * (linear.weight.ndim - 1)) if linear.product.op_type == "Conv" else factor
    bias = None if linear.bias is None else linear.bias * factor
    if shift is not None:
        bias = shift if bias is None else bias + shift
    return rewrite_linear(graph, linear, operand(linear.product, 0), linear.weight * columns, bias)


def rewrite_linear(graph: Graph, linear: LinearMatch, x: ir.Value, weight: Array, bias: Array | None) -> bool:
    """Let the linear read `x`, and give it another weight and bias.

    The old constants stay as they are, because exporters share equal constants between nodes. Return False, and change
    nothing, if the data type of the weight cannot hold the new numbers.
    """
    if not fits_type(linear, weight, bias):
        return False
    dtype, product, tape = linear.weight.dtype, linear.product, ir.tape.Tape()
    numbers = [None if n is None else n.astype(dtype) for n in (weight, bias)]
    inputs = [
        tape.initializer(ir.tensor(n, name=_unused_name(graph, f"{product.name}/{label}_folded")))
        for label, n in zip(("weight", "bias"), numbers, strict=True)
        if n is not None
    ]
    if product.op_type == "Conv":
        attributes = {key: a.value for key, a in product.attributes.items() if a.value is not None}
        result = tape.op("Conv", [x, *inputs], attributes, name=product.name)
    else:
        result = tape.op("MatMul", [x, inputs[0]], name=product.name)
        if bias is not None:
            result.shape, result.type = product.outputs[0].shape, product.outputs[0].type
            name = linear.add.name if linear.add is not None else f"{product.name}/bias"
            result = tape.op("Add", [result, inputs[1]], name=name)
    graph.replace(linear.nodes, tape, linear.output, result)
    return True


def fits_type(linear: LinearMatch, weight: Array, bias: Array | None) -> bool:
    """Return True if the data type of the linear's weight can hold these numbers."""
    with np.errstate(over="ignore"):
        numbers = [n.astype(linear.weight.dtype) for n in (weight, bias) if n is not None]
    return all(bool(np.isfinite(n).all()) for n in numbers)


def _unused_name(graph: Graph, name: str) -> str:
    """Return `name`, with a number if an earlier folding took it."""
    initializers, number, unused = graph.model.graph.initializers, 1, name
    while unused in initializers:
        number += 1
        unused = f"{name}_{number}"
    return unused


def bypass(graph: Graph, node: ir.Node, index: int = 0) -> None:
    """Remove `node`: its readers read its input `index` instead. Nothing else may read that input."""
    old, new = node.outputs[0], operand(node, index)
    name = old.name if old.is_graph_output() else new.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.model.graph.remove(node, safe=True)
    new.name = name
