"""Solve the target shape of a Reshape whose batch varies."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, producer
from vitdeploy.passes._known_sizes import picked_sizes

_REST = -1
"""In a target shape: the size that is left over."""
_COPY = 0
"""In a target shape: the input's size at the same axis."""


@dataclass(frozen=True)
class _Part:
    """One size of a target shape: a number, or a multiple of a size that varies, such as batch · heads."""

    number: int
    symbol: ir.SymbolicDim | None = None


def solve_reshapes(graph: Graph) -> int:
    """Make constant each target shape with one size that varies. Return how many there were.

        x (w, 49, 96) ─┬─ Shape ─ Gather [0] ─ Concat [·, 49, 3, 3, -1] ─┐
                       └─ MatMul ─ Add ─────────────── (w, 49, 288) ─ Reshape   ─▶   Reshape(·, [0, 49, 3, 3, 32])

        Shape ─ Gather [0] ─ Mul 3 ─ Concat [·, 49, 32] ─ Reshape               ─▶   Reshape(·, [-1, 49, 32])

    Without a -1, the size that varies becomes the -1. With one, the size that varies must also be one of the input's:
    shape inference gives both the same name. Then the products of the fixed sizes solve the -1. Left alone: shapes that
    are computed in another way, as with a factor that is no whole number, and shapes of which two sizes vary.
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
    varying = [axis for axis, part in enumerate(parts) if part.symbol is not None]
    if len(varying) != 1 or _Part(_COPY) in parts or parts[varying[0]].number < 1:
        return None
    (axis,), numbers, sizes = varying, [part.number for part in parts], list(source.shape)
    if parts.count(_Part(_REST)):
        varying_sizes = [size for size in sizes if not isinstance(size, int)]
        if parts.count(_Part(_REST)) > 1 or varying_sizes != [parts[axis].symbol]:
            return None
        before = prod(size for size in sizes if isinstance(size, int))
        rest, remainder = divmod(
            before, prod(n for n, part in zip(numbers, parts, strict=True) if part.number != _REST)
        )
        if remainder or not rest:
            return None
        numbers[parts.index(_Part(_REST))] = rest
    # Shape inference passes the name of a size on through 0 but not through -1.
    is_copied = axis < len(sizes) and parts[axis].number == 1 and parts[axis].symbol == sizes[axis]
    numbers[axis] = _COPY if is_copied else _REST
    return numbers


def _read_parts(shape: ir.Value | None) -> list[_Part] | None:
    """Read a shape that a Concat puts together from single sizes. None for any other shape."""
    concat = producer(shape, "Concat")
    parts = [_read_part(value) for value in concat.inputs] if concat is not None else [None]
    return [part for part in parts if part is not None] if None not in parts else None


def _read_part(value: ir.Value | None) -> _Part | None:
    """Read one size: a constant, a size that was picked from a Shape, or the product of two."""
    if constant(value) is not None:
        numbers = array(value)
        return _Part(int(numbers.item())) if numbers.size == 1 and numbers.dtype.kind in "iu" else None
    node = producer(value, "Cast", "Mul", "Reshape", "Squeeze", "Unsqueeze")
    if node is not None and node.op_type == "Mul":
        one, other = (_read_part(v) for v in node.inputs)
        if one is None or other is None or (one.symbol is not None and other.symbol is not None):
            return None
        return _Part(one.number * other.number, one.symbol if one.symbol is not None else other.symbol)
    if node is not None:
        return _read_part(node.inputs[0])
    sizes = picked_sizes(value)
    size = sizes.item() if sizes is not None and sizes.size == 1 else None
    if isinstance(size, int):
        return _Part(size)
    return _Part(1, size) if isinstance(size, ir.SymbolicDim) and size.value is not None else None
