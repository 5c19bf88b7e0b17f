"""Find outputs whose rows a model selects by score, as detectors in two stages do."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import onnx_ir as ir

from vitdeploy.graph.axes import Pairs, pair_axes
from vitdeploy.graph.model import Graph, dims

_MOST_VALUES = 20_000
"""Values that one search visits: a bound for hostile graphs."""


def find_selected(graph: Graph, tensors: Collection[str] = ()) -> dict[str, int]:
    """Return the outputs whose rows are in the order of a TopK, with the axis of the rows; and such `tensors` inside.

        scores ─ TopK ─ indices ─ Gather ─ tokens (batch, 300, 256) ─ decoder ─ boxes (batch, 300, 4)

    Engines round differently, so scores that are nearly equal change places, and with them whole rows of the outputs.
    The rows of such outputs are a set and no sequence. An axis is followed from the indices through all operators that
    keep its positions apart. Left out: outputs of which another axis may be that of the rows.
    """
    if not any(node.op_type == "TopK" for node in graph.nodes):
        return {}
    copy = Graph(graph.model.clone())
    copy.infer_shapes()
    inner = [v for node in copy.nodes for v in node.outputs if v.name in tensors and not v.is_graph_output()]
    copy.model.graph.outputs.extend(inner)
    selected: dict[str, set[int]] = {}
    for node in copy.nodes:
        shape = dims(node.outputs[0]) if node.op_type == "TopK" else None
        if shape:
            axis = node.attributes.get_int("axis", -1) % len(shape)
            for name, axes in _follow([(value, axis) for value in node.outputs], shape[axis]).items():
                selected.setdefault(name, set()).update(axes)
    return {name: axes.pop() for name, axes in selected.items() if len(axes) == 1}


def _follow(starts: list[tuple[ir.Value, int]], rows: int | None) -> dict[str, set[int]]:
    """Return the axes of each output at which an axis of `rows` positions arrives."""
    pending = deque((value, frozenset({axis})) for value, axis in starts)
    visited, arrived = {id(value) for value, _ in starts}, dict[str, set[int]]()
    while pending and len(visited) < _MOST_VALUES:
        value, axes = pending.popleft()
        if value.is_graph_output():
            sizes = dims(value) or ()
            arrived.setdefault(value.name or "", set()).update(axis for axis in axes if sizes[axis] == rows)
        for use in value.uses():
            for output in use.node.outputs:
                pairs = _pair_rows(use.node, use.idx, output)
                moved = frozenset(b for a, b in pairs if a in axes)
                if moved and id(output) not in visited:
                    visited.add(id(output))
                    pending.append((output, moved))
    return arrived


def _pair_rows(node: ir.Node, index: int, output: ir.Value) -> Pairs:
    """Return the axes of an input that live on in `output`; of indices too, which select what stands in each row."""
    shape = dims(node.inputs[index]) or ()
    if node.op_type == "Attention":  # (batch, heads, tokens, size): the rows of q stay, those of k and v are summed
        return [(axis, axis) for axis in range(len(shape) - 1)] if index == 0 else []
    if index == 1 and node.op_type in ("Gather", "GatherElements", "GatherND"):
        rank = len(dims(node.inputs[0]) or ())
        if node.op_type == "Gather":
            first = node.attributes.get_int("axis", 0) % max(1, rank)
            return [(axis, first + axis) for axis in range(len(shape))]
        row_axes = len(shape) - (1 if node.op_type == "GatherND" else 0)
        return [(axis, axis) for axis in range(row_axes)]
    return pair_axes(node, index, output) or []
