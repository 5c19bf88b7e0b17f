"""Solve the sizes of a Reshape whose batch varies."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, producer
from vitdeploy.passes._known_sizes import picked

_REST = -1
_KEPT = 0


def solve_reshapes(graph: Graph) -> int:
    """Make each target shape constant of which one size varies and another is "the rest"; how many there were.

        x (w, 49, 96) ─┬─ Shape ─ Gather [0] ─ Concat [·, 49, 3, 3, -1] ─┐
                       └─ MatMul ─ Add ─────────────── (w, 49, 288) ─ Reshape   ─▶   Reshape(·, [0, 49, 3, 3, 32])

    The size that varies is one of the input's own (shape inference gives both one name), so the fixed ones must have
    the same product on both sides. Left alone: a size that is computed otherwise, and two that vary.
    """
    solved = 0
    for node in [n for n in graph.nodes if n.op_type == "Reshape" and constant(n.inputs[1]) is None]:
        target = _solved(node)
        if target is None:
            continue
        tape = ir.tape.Tape()
        shape = tape.initializer(ir.tensor(np.array(target, np.int64), name=f"{node.name}/solved_shape"))
        result = tape.op("Reshape", [node.inputs[0], shape], name=node.name)
        graph.replace([node], tape, node.outputs[0], result)
        solved += 1
    if solved:
        _infer_anew(graph)
    return solved


def _infer_anew(graph: Graph) -> None:
    """Forget the shapes with an open size: inference keeps a name that it once gave where it now knows a better."""
    for node in graph.nodes:
        for output in node.outputs:
            is_open = output.shape is not None and not all(isinstance(size, int) for size in output.shape)
            if is_open and node.domain == "" and not output.is_graph_output():
                output.shape = None
    graph.infer_shapes()


def _solved(node: ir.Node) -> list[int] | None:
    """The target shape as constants, or None."""
    source, parts = node.inputs[0], _parts(node.inputs[1])
    if node.attributes.get_int("allowzero", 0) or source is None or source.shape is None or parts is None:
        return None
    sizes = list(source.shape)
    named = [part for part in parts if not isinstance(part, int)]
    open_sizes = [size for size in sizes if not isinstance(size, int)]
    if len(named) != 1 or len(open_sizes) != 1 or named != open_sizes or parts.count(_REST) != 1 or _KEPT in parts:
        return None
    before = prod(size for size in sizes if isinstance(size, int))
    rest, left = divmod(before, prod(part for part in parts if isinstance(part, int) and part != _REST))
    if left or not rest:
        return None
    at = parts.index(named[0])
    # Shape inference sees the name of a size through 0 but not through -1.
    varying = _KEPT if at < len(sizes) and sizes[at] == named[0] else _REST
    return [varying if not isinstance(part, int) else rest if part == _REST else part for part in parts]


def _parts(shape: ir.Value | None) -> list[int | ir.SymbolicDim] | None:
    """The sizes that a Concat of single ones puts together: known, or named; None when one is computed otherwise."""
    concat = producer(shape, "Concat")
    parts = [_part(value) for value in concat.inputs] if concat is not None else [None]
    return [part for part in parts if part is not None] if None not in parts else None


def _part(value: ir.Value | None) -> int | ir.SymbolicDim | None:
    """One such size."""
    if constant(value) is not None:
        numbers = array(value)
        return int(numbers.item()) if numbers.size == 1 else None
    unsqueeze = producer(value, "Unsqueeze")
    sizes = picked(unsqueeze.inputs[0] if unsqueeze is not None else value)
    size = sizes.item() if sizes is not None and sizes.size == 1 else None
    return size if isinstance(size, int) or (isinstance(size, ir.SymbolicDim) and size.value is not None) else None
