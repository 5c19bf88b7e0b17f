"""Find the decoder of a DETR-like model: queries that read the features of the image by cross-attention."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.flow import image_values, nodes_above, nodes_below
from vitdeploy.graph.model import Graph, constant, dims, producer
from vitdeploy.graph.products import weight_of
from vitdeploy.graph.selection import find_selected

_MOVES = {
    "Add", "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Mul", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Operators between a linear and the attention that reads it."""
_BOX = 4
"""The numbers of a box."""


@dataclass(frozen=True)
class QueryDecoder:
    """The nodes of a decoder of queries, and of what selects them.

    Attributes:
        nodes: the decoder, with its heads and with the linears that make its keys and values.
        selection: the nodes that select queries by score, and compute the boxes to start from; empty for learned ones.
        gives_boxes: True if an output of the queries can be boxes.
    """

    nodes: frozenset[ir.Node]
    selection: frozenset[ir.Node]
    gives_boxes: bool


@dataclass(frozen=True)
class _Core:
    """An attention, or the sampling of a deformable one: what asks, and what is read."""

    node: ir.Node
    query: ir.Value | None
    memory: tuple[ir.Value, ...]


def find_query_decoder(graph: Graph, softmaxes: Collection[str] = ()) -> QueryDecoder | None:
    """Find the decoder of a raised graph by its topology; None if there is none.

        features ─┬─ scores ─ TopK ─ queries ─┐                 the selection: up to TopK
                  └─ keys, values ────────────┴─ attention ─ … ─ boxes      the decoder: all behind it

    The queries are what a TopK selects, or learned constants that read the image (DETR). One query that pools the image
    (SigLIP) is no decoder. Nor are tokens that a classifier drops by score: nothing reads what was there before.

    Args:
        graph: raised.
        softmaxes: names of the softmaxes of attention that was not raised.
    """
    depends = image_values(graph)
    cores = list(_find_cores(graph, softmaxes))
    start = _find_selection(graph, cores) or _find_learned_queries(cores, depends)
    if start is None:
        return None
    first, below = start
    nodes = set(below)
    memory = [v for core in cores if core.node in below for v in core.memory if v.producer() not in below]
    projections = {linear for value in memory for linear in _linears_above(value)}
    sources = [v for node in projections for v in node.inputs if v in depends]
    nodes |= projections
    read = {v for node in below for v in node.inputs if v is not None and v.producer() not in nodes and v in depends}
    features = nodes_above(sources or memory or read - set(first.outputs), depends)
    scores = {v for v in first.inputs if v is not None and v in depends}
    selection = (nodes_above(read | scores, depends) - features - nodes) | ({first} - nodes)
    is_selected = first.op_type == "TopK"
    outputs = [v for v in graph.model.graph.outputs if v.producer() in below]
    gives_boxes = any(_BOX in (dims(v) or ())[-2:] for v in outputs)
    return QueryDecoder(frozenset(nodes), frozenset(selection) if is_selected else frozenset(), gives_boxes)


_Start = tuple[ir.Node, set[ir.Node]]
"""The node that queries begin at, and all nodes behind it."""


def _find_selection(graph: Graph, cores: list[_Core]) -> _Start | None:
    selections = [(node, nodes_below(node.outputs)) for node in graph.nodes if node.op_type == "TopK"]
    for node, below in selections:
        if any(core.node in below and _reads_elsewhere(core, below) for core in cores):
            return node, below
    rows = find_selected(graph) if selections else {}
    boxes = {v.producer() for v in graph.model.graph.outputs if v.name in rows and _BOX in (dims(v) or ())[-2:]}
    for node, below in selections:  # a decoder whose queries read nothing but each other
        if boxes & below and any(weight_of(other) is not None for other in below):
            return node, below
    return None


def _reads_elsewhere(core: _Core, below: Collection[ir.Node]) -> bool:
    """Return whether the queries are of `below`, and what they read is not."""
    asks = core.query is not None and core.query.producer() in below
    return asks and any(value.producer() not in below for value in core.memory)


def _find_learned_queries(cores: list[_Core], depends: Collection[ir.Value]) -> _Start | None:
    for core in cores:
        is_learned = core.query is not None and core.query not in depends
        if not is_learned or not any(v in depends for v in core.memory) or not _has_rows(core):
            continue
        below = nodes_below(core.node.outputs) | {core.node}
        if any(other.node in below and other.node.op_type != "GridSample" for other in cores):
            return core.node, below
    return None


def _has_rows(core: _Core) -> bool:
    """Return whether there are several queries. One that pools the image belongs to a classifier."""
    shape = dims(core.query)
    return shape is not None and len(shape) > 1 and (shape[-2] is None or shape[-2] > 1)


def _find_cores(graph: Graph, softmaxes: Collection[str]) -> Iterator[_Core]:
    for node in graph.nodes:
        if node.op_type == "Attention":
            yield _Core(node, node.inputs[0], tuple(v for v in node.inputs[1:3] if v is not None))
        elif node.op_type == "GridSample" and node.inputs[0] is not None:
            yield _Core(node, node.inputs[1], (node.inputs[0],))
        elif node.name in softmaxes and (scores := _scores_above(node.inputs[0])) is not None:
            yield _Core(node, scores.inputs[0], tuple(v for v in scores.inputs[1:2] if v is not None))


def _scores_above(value: ir.Value | None) -> ir.Node | None:
    """Return the product of queries and keys above a softmax, behind scales and masks."""
    pending = [value]
    while pending:
        node = producer(pending.pop(0))
        if node is not None and node.op_type in ("MatMul", "Einsum") and weight_of(node) is None:
            return node
        if node is not None and node.op_type in (*_MOVES, "Div", "Clip"):
            pending += node.inputs
    return None


def _linears_above(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the linears that make keys or values, behind operators that move or mask them."""
    pending, visited = [value], set[ir.Node]()
    while pending:
        node = pending.pop().producer()
        if node is None or node in visited:
            continue
        visited.add(node)
        if weight_of(node) is not None:
            yield node
        elif node.op_type in _MOVES and (node.op_type != "Add" or any(constant(v) is not None for v in node.inputs)):
            pending += [v for v in node.inputs if v is not None]
