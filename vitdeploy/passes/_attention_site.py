"""Match the attention around a softmax, in every form that exporters write."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import array, constant, dims, operand, producer, scalar
from vitdeploy.passes._attention_bias import Bias

_NO_EFFECT = {"Dropout", "Identity", "Cast"}
"""Operators between the softmax and the product with v that do nothing in inference."""

_ABOVE_SOFTMAX = {
    "Add", "Cast", "Clip", "Div", "Expand", "Identity", "Max", "Min", "Mul", "Reshape", "Squeeze", "Sub", "Tanh",
    "Unsqueeze", "Where",
}  # fmt: skip
"""Operators between the product of q and k and the softmax, whether or not `Attention` can express them."""

_PRODUCTS = {"Einsum", "MatMul"}
"""`raise_products` runs first: an Einsum that is still there is one that MatMul cannot express."""

_LOW = -1e4
"""A score that counts as masked: exp(-1e4) is 0 in float32, and in float16 too beside scores of ordinary size."""


@dataclass(frozen=True)
class AttentionMatch:
    """A matched attention: its operands, and the node whose output `Attention` will give."""

    softmax: ir.Node
    output: ir.Node
    q: ir.Value
    k: ir.Value
    k_is_transposed: bool
    """k is (batch, heads, size, tokens), as the product takes it."""
    v: ir.Value
    scale: float
    head_scale: ir.Value | None
    """A constant factor for each head, (1, heads, 1, 1) or of lower rank, as in SwinV2's cosine attention."""
    biases: tuple[Bias, ...]


@dataclass(frozen=True)
class _Scores:
    """The input of the softmax: product · scale · head_scale + Σ bias · bias.scale."""

    product: ir.Node
    scale: float
    head_scale: ir.Value | None
    biases: tuple[Bias, ...]


def match_attention(softmax: ir.Node) -> AttentionMatch | str | None:
    """Match the attention around `softmax`.

    Return the reason if `Attention` cannot express it, and None if its products are not beside it. Then it may still be
    an attention: see `vitdeploy.graph.softmaxes`.
    """
    path = _find_product_path(softmax.outputs[0])
    if not path or any(constant(value) is not None for value in path[-1].inputs):
        return None
    if not _products_above(softmax.inputs[0]):
        return None
    rank = len(dims(softmax.outputs[0]) or ())
    axis = softmax.attributes.get_int("axis", -1)
    if rank != 4:
        return f"the scores have rank {rank or 'unknown'}, not (batch, heads, tokens, tokens)"
    if axis not in (-1, rank - 1):
        return f"the softmax runs over axis {axis}, not over the keys"
    if _is_read_elsewhere(softmax.outputs[0], path):
        return "the attention map is read by something else (or returned), which a fused kernel cannot supply"
    if path[-1].op_type != "MatMul" or path[-1].inputs[0] is not [softmax, *path][-2].outputs[0]:
        return "the attention map is not the left operand of a MatMul"
    scores = _match_scores(softmax)
    if isinstance(scores, str):
        return scores
    q, q_scale = _split_scale(operand(scores.product, 0))
    k, k_scale, k_is_transposed = _match_keys(operand(scores.product, 1))
    v = operand(path[-1], 1)
    if reason := _unfit_reason(q, k, v, scores.biases, softmax):
        return reason
    if any(node.op_type == "Where" for node in path) and any(_may_mask_whole_rows(b.value) for b in scores.biases):
        return "a query whose keys are all masked gives zeros, which a fused kernel does not do"
    scale = scores.scale * q_scale * k_scale
    if scale <= 0:
        return "its scale is negative or zero, which fused kernels do not take"
    return AttentionMatch(softmax, path[-1], q, k, k_is_transposed, v, scale, scores.head_scale, scores.biases)


def _find_product_path(attention_map: ir.Value) -> list[ir.Node]:
    """Return the nodes from the attention map to its product with v, the last one. Empty if there is no product."""
    for use in attention_map.uses():
        node = use.node
        if node.op_type in _PRODUCTS:
            return [node]
        if (node.op_type in _NO_EFFECT or _guards_against_nan(node)) and (rest := _find_product_path(node.outputs[0])):
            return [node, *rest]
    return []


def _guards_against_nan(node: ir.Node) -> bool:
    """Return whether `node` is the Where of Where(IsNaN(p), 0, p), which PyTorch writes for a boolean mask."""
    test = producer(node.inputs[0], "IsNaN") if node.op_type == "Where" else None
    return test is not None and test.inputs[0] is node.inputs[2]


def _is_read_elsewhere(attention_map: ir.Value, path: list[ir.Node]) -> bool:
    """Return whether a node outside of `path` reads the attention map, or a copy of it on the path."""
    for node in path:
        readers = 2 if node.op_type == "Where" else 1
        if attention_map.is_graph_output() or len(attention_map.uses()) > readers:
            return True
        attention_map = node.outputs[0]
    return False


def _may_mask_whole_rows(bias: ir.Value) -> bool:
    """Return whether a query may have no key at all, so that its softmax is 0 / 0. A computed mask may do that."""
    return constant(bias) is None or bool(np.isneginf(array(bias)).all(axis=-1).any())


def _may_fill_whole_rows(condition: ir.Value, choices: tuple[float, float]) -> bool:
    """Return whether all keys of a query may be filled with the low number. A computed condition may do that."""
    if constant(condition) is None:
        return True
    return bool((np.where(array(condition), *choices) != 0).all(axis=-1).any())


def _products_above(value: ir.Value | None) -> list[ir.Node]:
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
        if node.op_type in _PRODUCTS and constant(node.inputs[-1]) is None:
            products.append(node)
        elif node.op_type in _ABOVE_SOFTMAX:
            pending += node.inputs
    return products


def _match_scores(softmax: ir.Node) -> _Scores | str:
    """Walk up from the softmax to the product of q and k, and collect factors and summands; or return why not."""
    scale, head_scale = 1.0, None
    biases: list[Bias] = []
    value = operand(softmax, 0)
    while (node := producer(value)) is not None and node.op_type != "MatMul":
        inside, factor = _split_scale(value)
        if inside is not value:
            scale *= factor
        elif node.op_type == "Add":
            summands = (operand(node, 0), operand(node, 1))
            inside, bias = summands if _products_above(summands[0]) else reversed(summands)
            if _products_above(bias):
                return "the softmax reads a sum of several products"
            biases.append(Bias(bias, scale))
        elif node.op_type == "Sub" and _is_row_maximum(node.inputs[1], node.inputs[0]):
            inside = operand(node, 0)  # a softmax does not change when one number is subtracted from a whole row
        elif node.op_type == "Sub" and _products_above(node.inputs[0]) and not _products_above(node.inputs[1]):
            inside = operand(node, 0)
            biases.append(Bias(operand(node, 1), -scale))
        elif (masked_fill := _match_masked_fill(node)) is not None:
            inside, condition, choices = masked_fill
            if _may_fill_whole_rows(condition, choices):
                return "a query whose keys may all be masked attends to them evenly, which a fused kernel does not do"
            biases.append(Bias(condition, scale, choices=choices))
        elif (window_mask := _match_window_mask(node)) is not None:
            inside, mask, shape = window_mask
            biases.append(Bias(mask, scale, shape))
        elif (per_head := _match_head_factor(node)) is not None and producer(per_head[0], "MatMul") is not None:
            inside, head_scale = per_head
        else:
            return f"{node.op_type} stands between the product of q and k and the softmax"
        value = inside
    if node is None:
        return "no product of q and k was found above the softmax"
    return _Scores(node, scale, head_scale, tuple(biases))


def _is_row_maximum(value: ir.Value | None, scores: ir.Value | None) -> bool:
    """Return whether `value` is the maximum of each row of `scores`, subtracted to keep the exponential small."""
    largest = producer(value, "ReduceMax")
    if largest is None or largest.inputs[0] is not scores or not largest.attributes.get_int("keepdims", 1):
        return False
    axes = largest.inputs[1] if len(largest.inputs) > 1 else None
    return scalar(axes) in (-1, len(dims(scores) or ()) - 1)


def _match_masked_fill(node: ir.Node) -> tuple[ir.Value, ir.Value, tuple[float, float]] | None:
    """Match a Where that replaces scores by one very low number.

    Return the scores, the condition, and the numbers to add where it is true and where it is false. Adding the low
    number gives the same probabilities as replacing by it, if its exponential is 0 and the row has other keys.
    """
    if node.op_type != "Where":
        return None
    condition, yes, no = (operand(node, i) for i in range(3))
    low = scalar(yes)
    if low is not None and low <= _LOW and _products_above(no):
        return no, condition, (low, 0.0)
    low = scalar(no)
    if low is not None and low <= _LOW and _products_above(yes):
        return yes, condition, (0.0, low)
    return None


def _match_window_mask(last: ir.Node) -> tuple[ir.Value, ir.Value, tuple[int | None, ...]] | None:
    """Match Swin's window mask: Reshape to (batch, windows, heads, n, n), Add a constant, Reshape back.

    Return the scores before it, the mask, and the 5-D shape, whose batch may vary.
    """
    add = producer(last.inputs[0], "Add") if last.op_type == "Reshape" else None
    if add is None:
        return None
    for inside, mask in ((operand(add, 0), operand(add, 1)), (operand(add, 1), operand(add, 0))):
        first, tensor = producer(inside, "Reshape"), constant(mask)
        if first is None or tensor is None:
            continue
        split, after, before = dims(inside), dims(last.outputs[0]), dims(first.inputs[0])
        if split is None or len(split) != 5 or None in split[1:] or after is None or before is None:
            return None
        batch, windows, *rest = split
        is_shared = len(tensor.shape) < 5 or tensor.shape[0] == 1  # one mask for all images of the batch
        sequences = None if batch is None or windows is None else batch * windows
        fits = after == before == (sequences, *rest) and (batch is not None or is_shared)
        return (operand(first, 0), mask, split) if fits else None
    return None


def _match_head_factor(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Match a Mul by a constant with one number for each head; return the other operand and the constant."""
    if node.op_type != "Mul":
        return None
    for inside, factor in ((operand(node, 0), operand(node, 1)), (operand(node, 1), operand(node, 0))):
        tensor, scores = constant(factor), dims(node.outputs[0])
        if tensor is None or scores is None or len(scores) != 4:
            continue
        shape = (1,) * (4 - len(tensor.shape)) + tuple(tensor.shape)
        return (inside, factor) if len(shape) == 4 and shape == (1, scores[1], 1, 1) else None
    return None


def _unfit_reason(q: ir.Value, k: ir.Value, v: ir.Value, biases: tuple[Bias, ...], softmax: ir.Node) -> str | None:
    """Return why `Attention` cannot take these operands, or None. It broadcasts less freely than MatMul and Add."""
    shapes = [dims(x) for x in (q, k, v)]
    if any(s is None or len(s) != 4 for s in shapes):
        return "q, k and v are not all (batch, heads, tokens, head size)"
    for sizes in list(zip(*(s for s in shapes if s is not None), strict=True))[:2]:
        if len(set(sizes) - {None}) > 1:
            return "q, k and v do not have the same batch and heads"
    scores_shape = (dims(softmax.outputs[0]) or ())[-2:]
    for bias in biases:
        shape = dims(bias.value)
        if bias.windows is None and (shape is None or len(shape) > 4):
            return "the rank of the bias is unknown or above 4"
        if shape is not None and shape[-2:] != scores_shape and None in scores_shape:
            return "the bias has to be broadcast to the scores, but their shape is not known"
    return None


def _split_scale(value: ir.Value) -> tuple[ir.Value, float]:
    """Split a Mul or Div by a scalar into its other operand and the factor; 1 for any other value."""
    node = producer(value, "Mul", "Div")
    if node is None:
        return value, 1.0
    for inside, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        factor = scalar(other)
        if factor and inside is not None and (node.op_type == "Mul" or other is node.inputs[1]):
            return inside, factor if node.op_type == "Mul" else 1 / factor
    return value, 1.0


def _match_keys(value: ir.Value) -> tuple[ir.Value, float, bool]:
    """Return the keys behind kᵀ as (batch, heads, tokens, size), their scale, and False.

    Where no plain transpose makes kᵀ, return kᵀ itself, its scale, and True.
    """
    value, scale = _split_scale(value)
    node = producer(value, "Transpose", "Reshape")
    if node is not None and node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == (0, 1, 3, 2):
        inner, inner_scale = _split_scale(operand(node, 0))
        return inner, scale * inner_scale, False
    if node is not None and node.op_type == "Reshape" and (keys := _match_batched_transpose(node)) is not None:
        return keys, scale, False
    return value, scale, True


def _match_batched_transpose(last: ir.Node) -> ir.Value | None:
    """Match the dynamo exporter's kᵀ: Reshape to (batch · heads, tokens, size), Transpose (0, 2, 1), Reshape back."""
    middle = producer(last.inputs[0], "Transpose")
    if middle is None or tuple(middle.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    first = producer(middle.inputs[0], "Reshape")
    before, after = (dims(first.inputs[0]) if first else None), dims(last.outputs[0])
    if first is None or before is None or after is None or len(before) != 4 or len(after) != 4:
        return None
    is_transposed = before[1] == after[1] and before[2] == after[3] and before[3] == after[2]
    return first.inputs[0] if is_transposed else None
