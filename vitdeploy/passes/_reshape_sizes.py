"""Solve the target shape of a Reshape whose batch varies."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, producer
from vitdeploy.passes._known_sizes import picked_sizes

_REST = -1
"""In a target shape: the size that is left over."""
_COPY = 0
"""In a target shape: the input's size at the same axis."""


def solve_reshapes(graph: Graph) -> int:
    """Make constant each target shape with one varying size and a -1. Return how many there were.

        x (w, 49, 96) ─┬─ Shape ─ Gather [0] ─ Concat [·, 49, 3, 3, -1] ─┐
                       └─ MatMul ─ Add ─────────────── (w, 49, 288) ─ Reshape   ─▶   Reshape(·, [0, 49, 3, 3, 32])

    The varying size is one of the input's sizes: shape inference gives both the same name. So the product of the fixed
    sizes must be the same on both sides, which solves the -1. Left alone: shapes that are computed in another way, and
    shapes of which two sizes vary.
    """
    solved = 0
    for node in [n for n in graph.nodes if n.op_type == "Reshape" and constant(n.inputs[1]) is None]:
        target = _solve(node)
        if target is None:
            continue
        tape = ir.tape.Tape()
        shape = tape.initializer(ir.tensor(np.array(target, np.int64), name=f"{node.name}/solved_shape"))
        result = tape.op("Reshape", [node.inputs[0], shape], name=node.name)
        graph.replace([node], tape, node.outputs[0], result)
        solved += 1
    if solved:
        _infer_varying_shapes_again(graph)
    return solved


def _infer_varying_shapes_again(graph: Graph) -> None:
    """Drop all shapes with a size that varies, and infer them again: inference never replaces a name by a number."""
    for node in graph.nodes:
        for output in node.outputs:
            varies = output.shape is not None and not all(isinstance(size, int) for size in output.shape)
            if varies and node.domain == "" and not output.is_graph_output():
                output.shape = None
    graph.infer_shapes()


def _solve(node: ir.Node) -> list[int] | None:
    """Return the target shape of a Reshape as numbers, or None if they cannot be known."""
    source, parts = node.inputs[0], _read_parts(node.inputs[1])
    if node.attributes.get_int("allowzero", 0) or source is None or source.shape is None or parts is None:
        return None
    sizes = list(source.shape)
    varying_parts = [part for part in parts if not isinstance(part, int)]
    varying_sizes = [size for size in sizes if not isinstance(size, int)]
    if len(varying_parts) != 1 or varying_parts != varying_sizes or parts.count(_REST) != 1 or _COPY in parts:
        return None
    before = prod(size for size in sizes if isinstance(size, int))
    rest, remainder = divmod(before, prod(part for part in parts if isinstance(part, int) and part != _REST))
    if remainder or not rest:
        return None
    axis = parts.index(varying_parts[0])
    # Shape inference passes the name of a size on through 0 but not through -1.
    varying = _COPY if axis < len(sizes) and sizes[axis] == varying_parts[0] else _REST
    return [varying if not isinstance(part, int) else rest if part == _REST else part for part in parts]


def _read_parts(shape: ir.Value | None) -> list[int | ir.SymbolicDim] | None:
    """Read a shape that a Concat puts together from single sizes: numbers or names. None for any other shape."""
    concat = producer(shape, "Concat")
    parts = [_read_part(value) for value in concat.inputs] if concat is not None else [None]
    return [part for part in parts if part is not None] if None not in parts else None


def _read_part(value: ir.Value | None) -> int | ir.SymbolicDim | None:
    """Read one size: a constant, or a size that was picked from a Shape."""
    if constant(value) is not None:
        numbers = array(value)
        return int(numbers.item()) if numbers.size == 1 else None
    unsqueeze = producer(value, "Unsqueeze")
    sizes = picked_sizes(unsqueeze.inputs[0] if unsqueeze is not None else value)
    size = sizes.item() if sizes is not None and sizes.size == 1 else None
    return size if isinstance(size, int) or (isinstance(size, ir.SymbolicDim) and size.value is not None) else None
