"""Read the scores of an attention: the product of q and k, its scale, and everything that is added to it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.model import constant, dims, operand, producer, scalar
from vitdeploy.passes._attention_bias import LOW, VANISHING, Bias, may_fill_rows

_ABOVE_SOFTMAX = {
    "Add", "Cast", "Clip", "Div", "Expand", "Identity", "Max", "Min", "Mul", "Reshape", "Squeeze", "Sub", "Tanh",
    "Unsqueeze", "Where",
}  # fmt: skip
"""Operators between the product of q and k and the softmax, whether or not `Attention` can express them."""

PRODUCTS = {"Einsum", "MatMul"}
"""`raise_products` runs first: an Einsum that is still there is one that MatMul cannot express."""

VIEWS = ("Reshape", "Squeeze", "Unsqueeze")
"""Operators that keep the elements in their order."""

_EVEN = "a query whose keys may all be masked attends to them evenly, which a fused kernel does not do"


@dataclass(frozen=True)
class Scores:
    """The input of a softmax: product · scale · head_scale + Σ bias · bias.scale.

    Attributes:
        product: the MatMul of q and k.
        is_swapped: it gives (keys, queries).
        head_scale: a constant factor for each head, (…, 1, 1), as in SwinV2's cosine attention.
        keys: their number; None if it varies.
    """

    product: ir.Node
    is_swapped: bool
    scale: float
    head_scale: ir.Value | None
    biases: tuple[Bias, ...]
    keys: int | None


def read_scores(softmax: ir.Node, *, is_swapped: bool) -> Scores | str:
    """Walk up from the softmax to the product of q and k; or return why `Attention` cannot express what is between.

    `is_swapped`: the softmax reads (keys, queries).
    """
    scale, head_scale = 1.0, None
    biases: list[Bias] = []
    moves: set[str] = set()
    value = operand(softmax, 0)
    keys = (dims(value) or (None, None))[-2 if is_swapped else -1]
    while (node := producer(value)) is not None and node.op_type != "MatMul":
        view = dims(value)
        inside, factor = split_scale(value)
        if inside is not value:
            scale *= factor
        elif node.op_type == "Add":
            summands = (operand(node, 0), operand(node, 1))
            inside, bias = summands if products_above(summands[0]) else reversed(summands)
            if products_above(bias):
                return "the softmax reads a sum of several products"
            biases.append(Bias(bias, scale, view, is_swapped))
        elif node.op_type == "Sub" and _is_row_maximum(node.inputs[1], node.inputs[0], keys, is_swapped=is_swapped):
            inside = operand(node, 0)  # a softmax does not change when one number is subtracted from a whole row
        elif node.op_type == "Sub" and products_above(node.inputs[0]) and not products_above(node.inputs[1]):
            inside = operand(node, 0)
            biases.append(Bias(operand(node, 1), -scale, view, is_swapped))
        elif (masked_fill := _match_masked_fill(node)) is not None:
            inside, condition, choices = masked_fill
            if scale * min(choices) > VANISHING:
                return "a factor behind a Where changes its low number, so that the keys it fills are not masked"
            if constant(condition) is None:
                return _EVEN
            biases.append(Bias(condition, scale, view, is_swapped, choices=choices))
        elif node.op_type in VIEWS or is_last_transpose(node):
            moves.add("Transpose" if node.op_type == "Transpose" else "Reshape")
            is_swapped ^= node.op_type == "Transpose"
            inside = operand(node, 0)
        elif (per_head := _match_head_factor(node)) is not None and producer(per_head[0], "MatMul") is not None:
            inside, head_scale = per_head
        else:
            return f"{node.op_type} stands between the product of q and k and the softmax"
        value = inside
    if node is None:
        return "no product of q and k was found above the softmax"
    if "Reshape" in moves and (is_swapped or len(moves) > 1 or not _has_same_keys(softmax, node)):
        return "Reshape stands between the product of q and k and the softmax, and changes the keys"
    if may_fill_rows(biases, keys):
        return _EVEN
    return Scores(node, is_swapped, scale, head_scale, tuple(biases), keys)


def _has_same_keys(softmax: ir.Node, product: ir.Node) -> bool:
    """Return whether the last axis of both is the same, so that each row of scores stays whole."""
    before, after = dims(product.outputs[0]), dims(softmax.outputs[0])
    return bool(before and after) and before[-1] is not None and before[-1] == after[-1]  # type: ignore[index]


def is_last_transpose(node: ir.Node) -> bool:
    """Return whether `node` exchanges the last two axes."""
    perm = tuple(node.attributes.get_ints("perm", ())) if node.op_type == "Transpose" else ()
    rank = len(perm)
    return rank >= 2 and perm == (*range(rank - 2), rank - 1, rank - 2)


def products_above(value: ir.Value | None) -> list[ir.Node]:
    """Return the products with computed keys that reach `value` through operators of `_ABOVE_SOFTMAX`.

    A constant right operand is the weight of a linear and not a key. A constant left operand may be a learned query,
    as in the first block of DETR's decoder and in pooling heads.
    """
    products, pending, visited = [], [value], set()
    while pending:
        node = producer(pending.pop())
        if node is None or id(node) in visited:
            continue
        visited.add(id(node))
        if node.op_type in PRODUCTS and constant(node.inputs[-1]) is None:
            products.append(node)
        elif node.op_type in _ABOVE_SOFTMAX or is_last_transpose(node):
            pending += node.inputs
    return products


def _is_row_maximum(value: ir.Value | None, scores: ir.Value | None, keys: int | None, *, is_swapped: bool) -> bool:
    """Return whether `value` is the maximum of each row of `scores`, subtracted to keep the exponential small.

    A row is a column of (keys, queries). A view of the scores may split it: then the axis has not all `keys`.
    """
    largest = producer(value, "ReduceMax")
    if largest is None or largest.inputs[0] is not scores or not largest.attributes.get_int("keepdims", 1):
        return False
    axes = largest.inputs[1] if len(largest.inputs) > 1 else None
    sizes, axis = dims(scores) or (), -2 if is_swapped else -1
    return len(sizes) >= 2 and sizes[axis] == keys and scalar(axes) in (axis, len(sizes) + axis)


def _match_masked_fill(node: ir.Node) -> tuple[ir.Value, ir.Value, tuple[float, float]] | None:
    """Match a Where that replaces scores by one very low number.

    Return the scores, the condition, and the numbers to add where it is true and where it is false. Adding the low
    number gives the same probabilities as replacing by it, if its exponential is 0 and the row has other keys.
    """
    if node.op_type != "Where":
        return None
    condition, yes, no = (operand(node, i) for i in range(3))
    low = scalar(yes)
    if low is not None and low <= LOW and products_above(no):
        return no, condition, (low, 0.0)
    low = scalar(no)
    if low is not None and low <= LOW and products_above(yes):
        return yes, condition, (0.0, low)
    return None


def _match_head_factor(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Match a Mul by a constant with one number for each head; return the other operand and the constant."""
    if node.op_type != "Mul":
        return None
    for inside, factor in ((operand(node, 0), operand(node, 1)), (operand(node, 1), operand(node, 0))):
        tensor, sizes = constant(factor), dims(inside)
        if tensor is None or sizes is None or sizes != dims(node.outputs[0]) or len(tensor.shape) > len(sizes):
            continue
        return (inside, factor) if tuple(tensor.shape)[-2:] == (1, 1) else None
    return None


def split_scale(value: ir.Value) -> tuple[ir.Value, float]:
    """Split a Mul or Div by a scalar into its other operand and the factor; 1 for any other value."""
    node = producer(value, "Mul", "Div")
    if node is None:
        return value, 1.0
    for inside, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        factor = scalar(other)
        if factor and inside is not None and (node.op_type == "Mul" or other is node.inputs[1]):
            return inside, factor if node.op_type == "Mul" else 1 / factor
    return value, 1.0
