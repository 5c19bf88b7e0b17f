"""Find rows at the edge of a selection: rounding decides whether they are selected or others in their place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.graph.forced_selection import expose_selections, indices_of, list_selections
from vitdeploy.graph.model import Graph, operand
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.parity import Example
from vitdeploy.graph.row_matching import Edge
from vitdeploy.session import Array

ROUNDING = 1e-4
"""Scores that differ by less, relative to the largest of an image, may change places at the edge. Engines that reorder
float32 sums differ by up to 2e-6 of an output's largest value, and scores by more where a softmax has amplified it."""


def find_edges(graph: Graph, examples: Sequence[Example], input_name: str) -> list[tuple[Edge, ...]]:
    """Return the edge of the selection for each image of each example; no edges without a single selection.

    Args:
        graph: in float32. It runs once for each example.
        examples: images as the graph takes them.
        input_name: the name of its input.
    """
    selections = list_selections(graph)
    if len(selections) != 1:
        return [()] * len(examples)
    node = next(n for n in graph.nodes if n.name == selections[0])
    name, axis = operand(node, 0).name or "", node.attributes.get_int("axis", -1)
    copy = expose_selections(graph, selections)
    with scratch_folder("edges") as folder:
        copy.save(folder / "scores.onnx")
        with OnnxSession(folder / "scores.onnx", lean=True) as session:
            outputs = [session.run(example.feed(input_name)) for example in examples]
    indices = indices_of(selections[0])
    return [_find_edges(one[name], one[indices].shape[axis], axis) for one in outputs]


def _find_edges(scores: Array, count: int, axis: int) -> tuple[Edge, ...]:
    by_image = np.moveaxis(scores, axis, -1)
    if by_image.ndim != 2:  # several selections in an image: their rows have no common order
        return ()
    return tuple(_find_edge(row, count) for row in by_image)


def _find_edge(scores: Array, count: int) -> Edge:
    """Return the selected rows that rounding may exchange for others, and how many others there are."""
    order = np.sort(scores)[::-1]
    if count >= len(order):
        return Edge(0, 0)
    finite = order[np.isfinite(order)]
    tolerance = ROUNDING * float(np.abs(finite).max(initial=0.0))
    inside, outside = order[:count], order[count:]
    near = int((inside - outside[0] <= tolerance).sum())
    return Edge(near, int((inside[-1] - outside <= tolerance).sum()) if near else 0)
