"""Find the attention around a softmax, however it is written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import array, constant, dims, operand, producer, scalar
from vitdeploy.passes._attention_bias import Bias

_PASSED_ON = {"Dropout", "Identity", "Cast"}
"""Between the softmax and the product with v: without effect in inference."""

_ABOVE_SOFTMAX = {
    "Add", "Cast", "Clip", "Div", "Expand", "Identity", "Max", "Min", "Mul", "Reshape", "Squeeze", "Sub", "Tanh",
    "Unsqueeze", "Where",
}  # fmt: skip
"""Between the product of q and k and the softmax, whether or not `Attention` can express it."""


_PRODUCTS = {"Einsum", "MatMul"}
"""An Einsum is one that MatMul cannot express."""

_MIXING = {
    "Add", "Cast", "Div", "Dropout", "Einsum", "Identity", "MatMul", "Mul", "ReduceSum", "Reshape", "Sub", "Transpose",
}  # fmt: skip
_MOST_BETWEEN = 8
"""Talking heads are a Transpose, a MatMul, an Add and a Transpose."""

_LOW = -1e4
"""exp(-1e4) is 0 in float32 and, below scores of ordinary size, in float16 too."""


@dataclass(frozen=True)
class Site:
    """A matched attention: its operands, and the node whose output the `Attention` replaces."""

    softmax: ir.Node
    output: ir.Node
    q: ir.Value
    k: ir.Value
    k_is_transposed: bool
    v: ir.Value
    scale: float
    head_scale: ir.Value | None
    """One factor for each head, as in SwinV2's cosine attention; constant, (1, heads, 1, 1) or of lower rank."""
    biases: tuple[Bias, ...]


@dataclass(frozen=True)
class _Scores:
    """What the softmax reads: product · scale · head_scale + Σ bias · bias.scale."""

    product: ir.Node
    scale: float
    head_scale: ir.Value | None
    biases: tuple[Bias, ...]


def match(softmax: ir.Node) -> Site | str | None:
    """The site around `softmax`; None if it is no attention; the reason if it is one that does not fit."""
    path = _path_to_product(softmax.outputs[0])
    if (not path or not _products_above(softmax.inputs[0])) and _is_mixed(softmax):
        return "heads or maps are mixed between its two products, which a fused kernel does not do"
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
        return "the attention map is not the first factor of a plain product"
    scores = _scores(softmax)
    if isinstance(scores, str):
        return scores
    q, q_scale = _without_scale(operand(scores.product, 0))
    k, k_scale, transposed = _keys(operand(scores.product, 1))
    v = operand(path[-1], 1)
    if reason := _misfit(q, k, v, scores.biases, softmax):
        return reason
    if any(node.op_type == "Where" for node in path) and any(_masks_whole_rows(b.value) for b in scores.biases):
        return "a query whose keys are all masked gives zeros, which a fused kernel does not do"
    scale = scores.scale * q_scale * k_scale
    if scale <= 0:
        return "its scale is negative, which fused kernels do not take"
    return Site(softmax, path[-1], q, k, not transposed, v, scale, scores.head_scale, scores.biases)


def _path_to_product(attention_map: ir.Value) -> list[ir.Node]:
    """The nodes from the attention map to its product with v, which is the last; none if there is no product."""
    for use in attention_map.uses():
        node = use.node
        if node.op_type in _PRODUCTS:
            return [node]
        if (node.op_type in _PASSED_ON or _guards_against_nan(node)) and (rest := _path_to_product(node.outputs[0])):
            return [node, *rest]
    return []


def _is_mixed(softmax: ir.Node) -> bool:
    """Whether heads or maps are mixed beside the softmax, between two products of computed tensors.

    Talking heads (CaiT) multiply by a constant across the heads, a gate (ConViT) blends two maps.
    """
    return _reaches_product(operand(softmax, 0), down=False) and _reaches_product(softmax.outputs[0], down=True)


def _reaches_product(start: ir.Value, *, down: bool) -> bool:
    """Whether a product of two computed tensors is a few steps away, through what mixes maps."""
    values, seen = [start], set[ir.Node]()
    for _ in range(_MOST_BETWEEN):
        around = [use.node for v in values for use in v.uses()] if down else [v.producer() for v in values]
        nodes = [n for n in around if n is not None and n not in seen]
        seen.update(nodes)
        if any(n.op_type in _PRODUCTS and all(constant(v) is None for v in n.inputs) for n in nodes):
            return True
        passed = [n for n in nodes if n.op_type in _MIXING]
        values = [v for n in passed for v in (n.outputs if down else n.inputs) if v is not None]
    return False


def _guards_against_nan(node: ir.Node) -> bool:
    """Whether `node` is the Where of Where(IsNaN(p), 0, p), which PyTorch writes for a boolean mask."""
    test = producer(node.inputs[0], "IsNaN") if node.op_type == "Where" else None
    return test is not None and test.inputs[0] is node.inputs[2]


def _is_read_elsewhere(attention_map: ir.Value, path: list[ir.Node]) -> bool:
    """Whether anything beside `path` reads the attention map, or what passes it on."""
    for node in path:
        readers = 2 if node.op_type == "Where" else 1
        if attention_map.is_graph_output() or len(attention_map.uses()) > readers:
            return True
        attention_map = node.outputs[0]
    return False


def _masks_whole_rows(bias: ir.Value) -> bool:
    """Whether some query may have no key at all: its softmax is 0 / 0."""
    return constant(bias) is None or bool(np.isneginf(array(bias)).all(axis=-1).any())


def _fills_whole_rows(condition: ir.Value, chosen: tuple[float, float]) -> bool:
    """Whether a row may have no key left; a condition that is computed may."""
    if constant(condition) is None:
        return True
    return bool((np.where(array(condition), *chosen) != 0).all(axis=-1).any())


def _products_above(value: ir.Value | None) -> list[ir.Node]:
    """The products with computed keys that reach `value` through operators that shift, scale, mask or reshape.

    Queries may be learned, and then are constant: DETR's first ones, a pooling head's. Keys that are constant are a
    linear's weight.
    """
    found, pending, seen = [], [value], set()
    while pending:
        node = producer(pending.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op_type in _PRODUCTS and constant(node.inputs[-1]) is None:
            found.append(node)
        elif node.op_type in _ABOVE_SOFTMAX:
            pending += node.inputs
    return found


def _scores(softmax: ir.Node) -> _Scores | str:
    """Walk up to the product of q and k, through scalar factors and summands; or why that fails."""
    scale, head_scale = 1.0, None
    biases: list[Bias] = []
    value = operand(softmax, 0)
    while (node := producer(value)) is not None and node.op_type != "MatMul":
        inside, factor = _without_scale(value)
        if inside is not value:
            scale *= factor
        elif node.op_type == "Add":
            summands = (operand(node, 0), operand(node, 1))
            inside, bias = summands if _products_above(summands[0]) else reversed(summands)
            if _products_above(bias):
                return "the softmax reads a sum of several products"
            biases.append(Bias(bias, scale))
        elif node.op_type == "Sub" and _is_row_maximum(node.inputs[1], node.inputs[0]):
            inside = operand(node, 0)  # a softmax does not see what is taken from a whole row
        elif node.op_type == "Sub" and _products_above(node.inputs[0]) and not _products_above(node.inputs[1]):
            inside = operand(node, 0)
            biases.append(Bias(operand(node, 1), -scale))
        elif (filled := _masked_fill(node)) is not None:
            inside, condition, chosen = filled
            if _fills_whole_rows(condition, chosen):
                return "a query whose keys may all be masked attends to them evenly, which a fused kernel does not do"
            biases.append(Bias(condition, scale, chosen=chosen))
        elif (window := _window_mask(node)) is not None:
            inside, mask, shape = window
            biases.append(Bias(mask, scale, shape))
        elif (per_head := _per_head_factor(node)) is not None and producer(per_head[0], "MatMul") is not None:
            inside, head_scale = per_head
        else:
            return f"{node.op_type} stands between the product of q and k and the softmax"
        value = inside
    if node is None:
        return "the product of q and k is out of sight"
    return _Scores(node, scale, head_scale, tuple(biases))


def _is_row_maximum(value: ir.Value | None, scores: ir.Value | None) -> bool:
    """Whether `value` is the largest of each row of `scores`, which some take away to keep the exponential small."""
    largest = producer(value, "ReduceMax")
    if largest is None or largest.inputs[0] is not scores or not largest.attributes.get_int("keepdims", 1):
        return False
    axes = largest.inputs[1] if len(largest.inputs) > 1 else None
    return scalar(axes) in (-1, len(dims(scores) or ()) - 1)


def _masked_fill(node: ir.Node) -> tuple[ir.Value, ir.Value, tuple[float, float]] | None:
    """Scores replaced by one very low number: the scores, the condition, and what to add for either side of it.

    Adding the number instead gives the same probabilities as long as exp() of it is 0 and the row has other keys.
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


def _window_mask(last: ir.Node) -> tuple[ir.Value, ir.Value, tuple[int | None, ...]] | None:
    """Swin's way to mask windows: Reshape to (batch, windows, heads, n, n), Add a constant, Reshape back.

    Returns the scores above, the mask, and the 5-D shape, whose batch may vary; None for anything else.
    """
    add = producer(last.inputs[0], "Add") if last.op_type == "Reshape" else None
    if add is None:
        return None
    for inside, mask in ((operand(add, 0), operand(add, 1)), (operand(add, 1), operand(add, 0))):
        first, numbers = producer(inside, "Reshape"), constant(mask)
        if first is None or numbers is None:
            continue
        whole, outer, inner = dims(inside), dims(last.outputs[0]), dims(first.inputs[0])
        if whole is None or len(whole) != 5 or None in whole[1:] or outer is None or inner is None:
            return None
        batch, windows, *rest = whole
        # One mask for all images: a leading axis of its own would be that of the batch.
        alike = len(numbers.shape) < 5 or numbers.shape[0] == 1
        together = None if batch is None or windows is None else batch * windows
        fits = outer == inner == (together, *rest) and (batch is not None or alike)
        return (operand(first, 0), mask, whole) if fits else None
    return None


def _per_head_factor(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The other operand and the factor, if `node` multiplies by a constant with one number for each head."""
    if node.op_type != "Mul":
        return None
    for inside, factor in ((operand(node, 0), operand(node, 1)), (operand(node, 1), operand(node, 0))):
        tensor, scores = constant(factor), dims(node.outputs[0])
        if tensor is None or scores is None or len(scores) != 4:
            continue
        shape = (1,) * (4 - len(tensor.shape)) + tuple(tensor.shape)
        return (inside, factor) if len(shape) == 4 and shape == (1, scores[1], 1, 1) else None
    return None


def _misfit(q: ir.Value, k: ir.Value, v: ir.Value, biases: tuple[Bias, ...], softmax: ir.Node) -> str | None:
    """Why `Attention` cannot take these operands, or None: MatMul and Add broadcast more freely."""
    shapes = [dims(x) for x in (q, k, v)]
    if any(s is None or len(s) != 4 for s in shapes):
        return "q, k and v are not all (batch, heads, tokens, head size)"
    for sizes in list(zip(*(s for s in shapes if s is not None), strict=True))[:2]:
        if len(set(sizes) - {None}) > 1:
            return "q, k and v do not have the same batch and heads"
    covered = (dims(softmax.outputs[0]) or ())[-2:]
    for bias in biases:
        shape = dims(bias.value)
        if bias.windows is None and (shape is None or len(shape) > 4):
            return "the rank of the bias is unknown or above 4"
        if shape is not None and shape[-2:] != covered and None in covered:
            return "the bias does not cover the scores, whose number is not known"
    return None


def _without_scale(value: ir.Value) -> tuple[ir.Value, float]:
    node = producer(value, "Mul", "Div")
    if node is None:
        return value, 1.0
    for inside, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        factor = scalar(other)
        if factor and inside is not None and (node.op_type == "Mul" or other is node.inputs[1]):
            return inside, factor if node.op_type == "Mul" else 1 / factor
    return value, 1.0


def _keys(value: ir.Value) -> tuple[ir.Value, float, bool]:
    """Keys as (batch, heads, tokens, size) if a plain transpose is in sight, else kᵀ as it is; and its scale."""
    value, scale = _without_scale(value)
    node = producer(value, "Transpose", "Reshape")
    if node is not None and node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == (0, 1, 3, 2):
        inner, inner_scale = _without_scale(operand(node, 0))
        return inner, scale * inner_scale, True
    if node is not None and node.op_type == "Reshape" and (folded := _batched_transpose(node)) is not None:
        return folded, scale, True
    return value, scale, False


def _batched_transpose(last: ir.Node) -> ir.Value | None:
    """The dynamo exporter's kᵀ: Reshape to (batch · heads, tokens, size), Transpose (0, 2, 1), Reshape back."""
    middle = producer(last.inputs[0], "Transpose")
    if middle is None or tuple(middle.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    first = producer(middle.inputs[0], "Reshape")
    before, after = (dims(first.inputs[0]) if first else None), dims(last.outputs[0])
    if first is None or before is None or after is None or len(before) != 4 or len(after) != 4:
        return None
    same = before[1] == after[1] and before[2] == after[3] and before[3] == after[2]
    return first.inputs[0] if same else None
