"""Match the attention around a softmax, in every form that exporters write."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from vitdeploy.graph.model import constant, dims, operand, producer
from vitdeploy.graph.softmaxes import is_stack
from vitdeploy.passes._attention_bias import Bias, ScoresForm, can_bring
from vitdeploy.passes._attention_form import Form, Sizes, choose_form
from vitdeploy.passes._attention_scores import (
    PRODUCTS,
    VIEWS,
    Scores,
    is_last_transpose,
    products_above,
    read_scores,
    split_scale,
)

_NO_EFFECT = {"Dropout", "Identity", "Cast"}
"""Operators between the softmax and the product with v that do nothing in inference."""


@dataclass(frozen=True)
class Operand:
    """q, k or v: (…, tokens, size), or (…, size, tokens) if `is_transposed`."""

    value: ir.Value
    is_transposed: bool = False

    @property
    def size(self) -> int | None:
        """The head size; None if it is not known."""
        sizes = dims(self.value) or (None, None)
        return sizes[-2 if self.is_transposed else -1]


@dataclass(frozen=True)
class AttentionMatch:
    """A matched attention.

    Attributes:
        softmax: its softmax.
        output: the product with v, whose output `Attention` will give.
        is_output_transposed: that output is (…, size, tokens), because v is the left operand.
        scores: the canonical form of its scores.
        value_lead: the sizes in front of (queries, keys) in the product with v.
        q, k, v: the operands.
        scale: a factor on the scores.
        head_scale: a constant factor for each head.
        biases: what is added to the scores.
    """

    softmax: ir.Node
    output: ir.Node
    is_output_transposed: bool
    scores: ScoresForm
    value_lead: Sizes
    q: Operand
    k: Operand
    v: Operand
    scale: float
    head_scale: ir.Value | None
    biases: tuple[Bias, ...]

    @property
    def has_one_key_head(self) -> bool:
        """True if all heads share one head of keys and values, as in multi-query attention."""
        heads = [_lead_of(x.value, 2)[1] for x in (self.k, self.v)]
        return len(self.scores.lead) == len(self.value_lead) == 2 and heads == [1, 1] and self.scores.form.heads != 1


def match_attention(softmax: ir.Node) -> AttentionMatch | str | None:
    """Match the attention around `softmax`.

    Return the reason if `Attention` cannot express it, and None if its products are not beside it. Then it may still be
    an attention: see `vitdeploy.graph.softmaxes`.
    """
    path = _find_product_path(softmax.outputs[0])
    if not path or any(constant(value) is not None and not is_stack(value) for value in path[-1].inputs):
        return None
    if not products_above(softmax.inputs[0]):
        return None
    rank = len(dims(softmax.outputs[0]) or ())
    axis = softmax.attributes.get_int("axis", -1)
    if rank < 2:
        return "the rank of the scores is unknown or below 2"
    if axis % rank < rank - 2:
        return f"the softmax runs over axis {axis}, not over the keys"
    if _is_read_elsewhere(softmax.outputs[0], path):
        return "the attention map is read by something else (or returned), which a fused kernel cannot supply"
    if path[-1].op_type != "MatMul":
        return "the product of the attention map with v is no MatMul"
    is_swapped = axis % rank == rank - 2
    is_left = path[-1].inputs[0] is [softmax, *path][-2].outputs[0]
    if is_left == (is_swapped ^ any(is_last_transpose(node) for node in path)):
        return f"the softmax runs over axis {axis}, not over the keys"
    scores = read_scores(softmax, is_swapped=is_swapped)
    if isinstance(scores, str):
        return scores
    if any(node.op_type == "Where" for node in path) and any(b.may_mask_whole_rows(None) for b in scores.biases):
        return "a query whose keys are all masked gives zeros, which a fused kernel does not do"
    return _fit(softmax, scores, path, Operand(operand(path[-1], int(is_left)), is_transposed=not is_left))


def _fit(softmax: ir.Node, scores: Scores, path: list[ir.Node], v: Operand) -> AttentionMatch | str:
    """Return the match; or why `Attention`, which broadcasts less freely than MatMul and Add, cannot take it."""
    first, second = (operand(scores.product, index) for index in (0, 1))
    queries, keys = (second, first) if scores.is_swapped else (first, second)
    q, q_scale = _read_operand(queries, is_transposed=scores.is_swapped)
    k, k_scale = _read_operand(keys, is_transposed=not scores.is_swapped)
    scale = scores.scale * q_scale * k_scale
    if scale <= 0:
        return "its scale is negative or zero, which fused kernels do not take"
    product = dims(scores.product.outputs[0])
    attention_map = dims([softmax, *path][-2].outputs[0])
    result = dims(path[-1].outputs[0])
    if product is None or attention_map is None or result is None or None in [dims(x.value) for x in (q, k, v)]:
        return "the shapes of q, k and v are not known"
    tokens = product[:-3:-1] if scores.is_swapped else product[-2:]
    lead, value_lead = product[:-2], _broadcast_ones(attention_map[:-2], (dims(v.value) or ())[:-2])
    map_tokens = attention_map[:-3:-1] if v.is_transposed else attention_map[-2:]
    if lead != value_lead and (map_tokens != tokens or None in tokens):
        return "a Reshape between its two products changes the queries"
    form = _choose_form(lead, value_lead, [(x.value, x.size) for x in (q, k)], is_open=None in tokens)
    match = AttentionMatch(
        softmax, path[-1], v.is_transposed, ScoresForm(form, lead, tokens), value_lead, q, k, v, scale,
        scores.head_scale, scores.biases,
    )  # fmt: skip
    return _unfit_reason(match) or match


def _broadcast_ones(lead: Sizes, value_lead: Sizes) -> Sizes:
    """Return `lead` with the axes of size 1 in front that v has and the attention map, as in (heads, …), has not."""
    more = value_lead[: max(0, len(value_lead) - len(lead))]
    return (*more, *lead) if all(size == 1 for size in more) else lead


def _choose_form(lead: Sizes, value_lead: Sizes, operands: list[tuple[ir.Value, int | None]], *, is_open: bool) -> Form:
    if lead == value_lead:
        return choose_form(lead, operands, is_open=is_open)
    four_axes = next((sizes for sizes in (value_lead, lead) if len(sizes) == 2), None)
    if four_axes is not None:
        return Form(*four_axes)
    return replace(choose_form(lead, operands, is_open=is_open), perm=None)


def _find_product_path(attention_map: ir.Value) -> list[ir.Node]:
    """Return the nodes from the attention map to its product with v, the last one. Empty if there is no product."""
    for use in attention_map.uses():
        node = use.node
        if node.graph is not attention_map.graph:
            continue  # in a branch of an If
        if node.op_type in PRODUCTS:
            return [node]
        passes = node.op_type in _NO_EFFECT or _guards_against_nan(node) or is_last_transpose(node)
        if (passes or _keeps_rows(node)) and (rest := _find_product_path(node.outputs[0])):
            return [node, *rest]
    return []


def _keeps_rows(node: ir.Node) -> bool:
    """Return whether `node` only merges or splits axes in front of the last two."""
    if node.op_type not in VIEWS:
        return False
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    return before is not None and after is not None and None not in before[-2:] and before[-2:] == after[-2:]


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


def _unfit_reason(match: AttentionMatch) -> str | None:
    """Return why `Attention` cannot take these operands, or None."""
    lead, tokens = match.scores.lead, match.scores.tokens
    for x, full in ((match.q, lead), (match.k, lead), (match.v, match.value_lead)):
        sizes = _lead_of(x.value, len(full))
        if len(sizes) != len(full) or any(a != b and b is None for a, b in zip(sizes, full, strict=True)):
            return "q, k and v do not have the same batch and heads"
    is_open = lead.count(None) + (None in tokens) > 1
    if is_open and (len(lead) > 2 or lead != match.value_lead):
        return "several of its sizes vary, so that it cannot be brought to (batch, heads, tokens, tokens)"
    for bias in match.biases:
        shape = dims(bias.value)
        if bias.view is None or shape is None:
            return "the rank of the bias is unknown"
        if None in tokens and shape[-2:] != tokens:
            return "the bias has to be broadcast to the scores, but their shape is not known"
        if not can_bring(bias, match.scores):
            return "a bias is added to a view of the scores whose sizes vary"
    return None


def _lead_of(value: ir.Value, rank: int) -> Sizes:
    """Return the sizes in front of (tokens, size), with ones in front of them up to `rank`."""
    sizes = (dims(value) or ())[:-2]
    return (1,) * (rank - len(sizes)) + sizes


def _read_operand(value: ir.Value, *, is_transposed: bool) -> tuple[Operand, float]:
    """Return q or k behind its scale and, if it is the operand that a product wants transposed, its transpose."""
    value, scale = split_scale(value)
    if not is_transposed:
        return Operand(value), scale
    node = producer(value)
    if node is not None and is_last_transpose(node):
        inner, inner_scale = split_scale(operand(node, 0))
        return Operand(inner), scale * inner_scale
    if node is not None and node.op_type == "Reshape" and (keys := _match_batched_transpose(node)) is not None:
        return Operand(keys), scale
    return Operand(value, is_transposed=True), scale


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
