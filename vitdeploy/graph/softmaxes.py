"""Tell which softmaxes of a graph belong to an attention, however its products are written.

A softmax belongs to an attention if its scores are a product of two computed tensors, and if its result weights
computed values: the axis that the softmax runs over comes from one factor of the product, an axis of the other factor
is still there, and a later product sums over one of the two. Axes are followed through all operators between them, so
that mixed heads (a convolution over the maps), gates and reshapes do not hide an attention.

Not an attention: the scores of a classifier (nothing is weighted); routers, pooling with learned scores and selective
kernels (the scores are a linear of the features, which sums over one axis of every earlier product).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.axes import is_reduction, pair_axes
from vitdeploy.graph.model import Graph, constant, dims, producer

Origins = tuple[frozenset[int], ...]
"""For each axis of a value, the axes of the softmax that it corresponds to."""

_PRODUCTS = frozenset({"Conv", "Einsum", "Gemm", "MatMul", "MatMulInteger"})
_MOVES = frozenset({
    "Cast", "Concat", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
})  # fmt: skip
_MOST_VALUES = 5000
"""Values that one search visits. The largest vision transformers have fewer between input and output."""
_QUANTIZED = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
MIXED = "heads or maps are mixed between its two products, which a fused kernel does not do"


@dataclass(frozen=True)
class Softmax:
    """A softmax: its last node, the scores that it reads, the axis, and whether it is one operator."""

    node: ir.Node
    scores: ir.Value
    axis: int
    is_operator: bool = True

    @property
    def output(self) -> ir.Value:
        """The attention map, if it belongs to an attention."""
        return self.node.outputs[0]


@dataclass(frozen=True)
class Finding:
    """An attention that no pass has raised, and why; or with `certain` False a softmax that may be one."""

    certain: bool
    reason: str


@dataclass(frozen=True)
class _Search:
    """The end of a search from a softmax: whether it met a product, the operators passed, one that hides the rest."""

    has_product: bool
    crossed: frozenset[str] = frozenset()
    hidden_by: str = ""
    axes: frozenset[int] = frozenset()
    """The axes of the softmax that come from one factor of the product alone: queries and keys."""


def find_softmaxes(graph: Graph) -> Iterator[Softmax]:
    """Yield every softmax: the operator, Exp(LogSoftmax(x)), and Exp(x) divided by its own sum."""
    for node in graph.nodes:
        if node.domain == "" and (softmax := _read_softmax(node)) is not None:
            yield softmax


def _read_softmax(node: ir.Node) -> Softmax | None:
    if node.op_type == "Softmax" and node.inputs[0] is not None:
        return Softmax(node, node.inputs[0], node.attributes.get_int("axis", -1))
    if node.op_type == "Exp" and (log := producer(node.inputs[0], "LogSoftmax")) and log.inputs[0] is not None:
        return Softmax(node, log.inputs[0], log.attributes.get_int("axis", -1), is_operator=False)
    if node.op_type != "Div" or (exponential := producer(node.inputs[0], "Exp")) is None:
        return None
    total = _skip_guards(node.inputs[1], exponential.outputs[0])
    scores = exponential.inputs[0]
    if total is None or scores is None:
        return None
    pairs, rank = pair_axes(total, 0, total.outputs[0]), len(dims(scores) or ())
    summed = set(range(rank)) - {axis for axis, _ in pairs or ()}
    return Softmax(node, scores, summed.pop(), is_operator=False) if pairs is not None and len(summed) == 1 else None


def _skip_guards(value: ir.Value | None, exponential: ir.Value) -> ir.Node | None:
    """Return the sum of `exponential` behind `value`, which may be kept from zero, broadcast, or raised by a number."""
    node = producer(value, "Add", "Clip", "Expand", "Max", "ReduceSum", "Unsqueeze")
    if node is None or node.op_type == "ReduceSum":
        return node if node is not None and node.inputs[0] is exponential else None
    return next((total for v in node.inputs if (total := _skip_guards(v, exponential)) is not None), None)


def explain_softmax(softmax: Softmax) -> Finding | None:
    """Return why this attention is not raised, or what hides whether it is one; None if it is no attention."""
    shape = dims(softmax.output)
    if shape is None:
        return Finding(certain=False, reason=f"{_name_hiding(softmax.scores)} hides where its products are")
    start: Origins = tuple(frozenset({axis}) for axis in range(len(shape)))
    axis = softmax.axis % max(1, len(shape))
    above = _search_up(softmax.scores, start, axis)
    if not above.has_product and not above.hidden_by:
        return None
    below = _search_down(softmax.output, start, above.axes or frozenset({axis}))
    if not below.has_product and not below.hidden_by:
        return None
    if not above.has_product or not below.has_product:
        return Finding(certain=False, reason=f"{above.hidden_by or below.hidden_by} hides where its products are")
    return Finding(certain=True, reason=_describe(softmax, above.crossed, below.crossed))


def _name_hiding(value: ir.Value) -> str:
    """Return the nearest operator above that the shape of `value` is unknown for."""
    node = value.producer()
    while node is not None and (source := next((v for v in node.inputs if v is not None and dims(v) is None), None)):
        if (above := source.producer()) is None:
            break
        node = above
    return node.op_type if node is not None else "an unknown shape"


def _describe(softmax: Softmax, above: frozenset[str], below: frozenset[str]) -> str:
    if (above | below) & _QUANTIZED:
        return "it is quantized between its two products"
    if (above | below) & _PRODUCTS:
        return MIXED
    if "ReduceSum" in above | below:
        return "a product is written as a multiplication and a sum"
    if below - _MOVES:
        return MIXED
    if not softmax.is_operator:
        return "its softmax is written as several operators"
    if below:
        return f"{', '.join(sorted(below))} stands between the softmax and the product with v"
    return f"{', '.join(sorted(above)) or 'an unknown form'} stands between the product of q and k and the softmax"


def _search_up(scores: ir.Value, start: Origins, axis: int) -> _Search:
    """Search for the product of q and k above the scores."""
    pending, visited, hidden_by = deque([(scores, start, frozenset[str]())]), {id(scores)}, ""
    while pending:
        value, origins, crossed = pending.popleft()
        node = value.producer()
        if node is None or constant(value) is not None:
            continue
        if is_reduction(node) and (factors := producer(node.inputs[0], "Mul")) is not None and _is_bilinear(factors):
            inner = _move_up(node, 0, value, origins)
            if inner is not None and (axes := _score_axes(factors, inner, axis)):
                return _Search(has_product=True, crossed=crossed | {"ReduceSum"}, axes=axes)
        if node.op_type in _PRODUCTS and _is_bilinear(node):
            if axes := _score_axes(node, origins, axis):
                return _Search(has_product=True, crossed=crossed, axes=axes)
            continue
        passed = crossed | {node.op_type}
        for index, source in enumerate(node.inputs):
            if source is None or id(source) in visited or constant(source) is not None:
                continue
            moved = _move_up(node, index, value, origins)
            if moved is None:
                hidden_by = hidden_by or node.op_type
            elif any(axis in axes for axes in moved):
                visited.add(id(source))
                pending.append((source, moved, passed))
        if len(visited) > _MOST_VALUES:
            return _Search(has_product=False, hidden_by="the size of the graph")
    return _Search(has_product=False, hidden_by=hidden_by)


def _move_up(node: ir.Node, index: int, output: ir.Value, origins: Origins) -> Origins | None:
    """Return the origins of an input's axes from those of an output."""
    pairs, shape = pair_axes(node, index, output), dims(node.inputs[index])
    if pairs is None or shape is None:
        return None
    return tuple(
        frozenset().union(*(origins[b] for a, b in pairs if a == position and b < len(origins)))
        for position in range(len(shape))
    )


def _is_bilinear(node: ir.Node) -> bool:
    """Return whether both factors are computed. Learned queries, a constant with a batch or heads, count too."""
    factors = list(node.inputs[:2])
    if len(factors) < 2 or constant(factors[1]) is not None:
        return False
    return constant(factors[0]) is None or (node.op_type == "MatMul" and is_stack(factors[0]))


def _score_axes(node: ir.Node, origins: Origins, axis: int) -> frozenset[int]:
    """Return the softmax's axes that come from one factor alone. Empty if `axis` is none, or the other side is lost."""
    first, second = ({b for _, b in pair_axes(node, index, node.outputs[0]) or ()} for index in (0, 1))
    sizes = dims(node.outputs[0]) or ()
    sides = [{b for b in side if sizes[b] != 1} for side in (first - second, second - first)]
    axes = frozenset().union(*(origins[b] for b in first ^ second))
    is_left = [not side or any(origins[b] for b in side) for side in sides]
    return axes if axis in axes and all(is_left) else frozenset()


def _search_down(attention_map: ir.Value, start: Origins, axes: frozenset[int]) -> _Search:
    """Search for the product of the attention map with v, which sums over one of `axes`: the keys.

    Where the softmax runs over the queries (slot attention, GroupViT), it is another axis than the softmax's.
    """
    pending = deque([(attention_map, start, frozenset[str](), False)])
    visited, hidden_by = {id(attention_map)}, ""
    while pending:
        value, origins, crossed, multiplied = pending.popleft()
        for use in value.uses():
            node, index = use.node, use.idx
            is_product = node.op_type in _PRODUCTS and _has_other_factor(node, index)
            for output in node.outputs[:1] if node.op_type != "Split" else node.outputs:
                pairs = pair_axes(node, index, output)
                if pairs is None:
                    hidden_by = hidden_by or node.op_type
                    continue
                surviving = {a for a, _ in pairs}
                summed = any(axes & origins[a] for a in range(len(origins)) if a not in surviving)
                if summed and (is_product or (multiplied and is_reduction(node))):
                    return _Search(has_product=True, crossed=crossed if is_product else crossed | {node.op_type})
                if is_product:
                    continue
                moved = _move_down(pairs, origins, len(dims(output) or ()))
                if any(axes & origin for origin in moved) and id(output) not in visited:
                    visited.add(id(output))
                    more = multiplied or (node.op_type == "Mul" and _has_other_factor(node, index))
                    pending.append((output, moved, crossed | {node.op_type}, more))
        if len(visited) > _MOST_VALUES:
            return _Search(has_product=False, hidden_by="the size of the graph")
    return _Search(has_product=False, hidden_by=hidden_by)


def _move_down(pairs: list[tuple[int, int]], origins: Origins, rank: int) -> Origins:
    return tuple(frozenset().union(*(origins[a] for a, b in pairs if b == place)) for place in range(rank))


def _has_other_factor(node: ir.Node, index: int) -> bool:
    """Return whether the map is multiplied by a computed tensor, or by learned values."""
    if index > 1 or len(node.inputs) < 2:
        return False
    other = node.inputs[1 - index]
    return constant(other) is None or (node.op_type == "MatMul" and is_stack(other))


def is_stack(value: ir.Value | None) -> bool:
    """Return whether a value has an axis for a batch or heads: a constant with one is learned queries or values."""
    return len(dims(value) or ()) > 2
