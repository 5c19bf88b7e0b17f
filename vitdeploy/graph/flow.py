"""Follow values through a graph: those that depend on the image, and the nodes above and below others."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from vitdeploy.graph.model import Graph

_NO_DATA = {"Shape", "Size"}
"""Operators whose result depends on the size of an image and not on its pixels."""


def image_values(graph: Graph) -> set[ir.Value]:
    """Return the values that depend on the pixels of the image."""
    depends: set[ir.Value] = set(graph.model.graph.inputs)
    for node in graph.nodes:
        if node.op_type not in _NO_DATA and any(v in depends for v in node.inputs if v is not None):
            depends.update(node.outputs)
    return depends


def nodes_above(
    values: Iterable[ir.Value], depends: Collection[ir.Value], stop: Collection[ir.Value] = ()
) -> set[ir.Node]:
    """Return the nodes that `values` are computed from, among those with results in `depends`, up to `stop`."""
    nodes: set[ir.Node] = set()
    pending = [v for v in values if v not in stop]
    while pending:
        node = pending.pop().producer()
        if node is not None and node not in nodes and any(v in depends for v in node.outputs):
            nodes.add(node)
            pending += [v for v in node.inputs if v is not None and v in depends and v not in stop]
    return nodes


def nodes_below(values: Iterable[ir.Value]) -> set[ir.Node]:
    """Return the nodes that are computed from `values`. What depends only on their sizes is none of them."""
    nodes: set[ir.Node] = set()
    pending = list(values)
    while pending:
        for use in pending.pop().uses():
            if use.node not in nodes and use.node.op_type not in _NO_DATA:
                nodes.add(use.node)
                pending += use.node.outputs
    return nodes
