"""Find the LayerNorm that ends in a division, however it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import array, constant, dims, only_consumer, operand, producer, scalar


@dataclass(frozen=True)
class Core:
    """A normalisation without its affine part: `output` = (x − mean) / √(variance + ε) over the channels of x.

    `nodes` are those that go, the last one first; `attributes` and `scale` are of the operator.
    """

    nodes: list[ir.Node]
    x: ir.Value
    output: ir.Value
    channels: int
    attributes: dict[str, Any]
    scale: ir.Value | None = None


def _channels(shape: tuple[int | None, ...], end: ir.Node) -> int | None:
    """The size of the last axis; where inference lost it, the size of the weight behind.

    A weight of more than one number could only be another size than the channels if there were one channel, of which
    every norm is zero.
    """
    multiply = only_consumer(end.outputs[0], "Mul")
    weights = [t for v in multiply.inputs if (t := constant(v)) is not None and t.size > 1] if multiply else []
    return shape[-1] or (weights[0].size if weights else None)


@dataclass(frozen=True)
class _Quotient:
    """numerator / √variance, and the nodes in between."""

    numerator: ir.Value
    variance: ir.Value
    nodes: list[ir.Node]


@dataclass(frozen=True)
class _Found:
    """(x − mean) / √(mean((x − mean)²) + ε) over any axes, and the nodes above its division."""

    x: ir.Value
    epsilon: float
    means: list[ir.Node]
    nodes: list[ir.Node]


def match(end: ir.Node) -> Core | str | None:
    """The norm whose division `end` is; None if it is no such thing; the reason if it is one that does not fit."""
    found = next((f for quotient in _quotients(end) if (f := _found(quotient)) is not None), None)
    if found is None:
        return None
    x, shape = found.x, dims(found.x)
    channels = _channels(shape, end) if shape else None
    if not shape or channels is None:
        return "the number of its channels is not known"
    for mean in found.means:
        if (axes := _axes(mean, len(shape))) != (len(shape) - 1,):
            return f"it normalises over axes {axes} of {len(shape)}, not over the last"
        if not mean.attributes.get_int("keepdims", 1):
            return "its mean loses the axis that it runs over"
    nodes = list(dict.fromkeys([end, *found.nodes]))
    inside = set(nodes)
    for node in nodes[1:]:
        value = node.outputs[0]
        if value.is_graph_output() or any(use.node not in inside for use in value.uses()):
            return f"its {node.op_type} ({node.name}) is read by something else"
    if len(dims(end.outputs[0]) or ()) != len(shape):
        return "its epsilon adds an axis"
    casts = _without_casts(x, end)
    if casts is None:
        return "its result has another type than what it normalises"
    source, last = casts
    if last is not end:
        nodes.insert(0, last)
    return Core(nodes, source, last.outputs[0], channels, {"axis": -1, "epsilon": found.epsilon})


def _quotients(end: ir.Node) -> list[_Quotient]:
    """The ways to read `end` as a quotient by a root: Div by it, or Mul by its reciprocal on either side."""
    if end.domain != "" or end.op_type not in ("Div", "Mul"):
        return []
    a, b = operand(end, 0), operand(end, 1)
    sides = [(a, _root(b, 0.5))] if end.op_type == "Div" else [(a, _reciprocal_root(b)), (b, _reciprocal_root(a))]
    return [_Quotient(numerator, root[0], root[1]) for numerator, root in sides if root is not None]


def _root(value: ir.Value, exponent: float) -> tuple[ir.Value, list[ir.Node]] | None:
    """What `value` is the power `exponent` of."""
    node = producer(value, "Pow", "Sqrt")
    fits = node is not None and (exponent == 0.5 if node.op_type == "Sqrt" else scalar(node.inputs[1]) == exponent)
    return (operand(node, 0), [node]) if node is not None and fits else None


def _reciprocal_root(value: ir.Value) -> tuple[ir.Value, list[ir.Node]] | None:
    node = producer(value, "Div", "Pow", "Reciprocal")
    if node is None:
        return None
    if node.op_type == "Pow":
        return _root(value, -0.5)
    if node.op_type == "Div" and scalar(node.inputs[0]) != 1:
        return None
    root = _root(operand(node, 1 if node.op_type == "Div" else 0), 0.5)
    return (root[0], [node, *root[1]]) if root is not None else None


def _found(quotient: _Quotient) -> _Found | None:
    """The quotient as a norm, when the numerator and the variance are of one x."""
    add = producer(quotient.variance, "Add")
    if add is None:
        return None
    a, b = operand(add, 0), operand(add, 1)
    epsilon, inside = (scalar(b), a) if constant(b) is not None else (scalar(a), b)
    mean = producer(inside, "ReduceMean")
    square = producer(mean.inputs[0], "Mul", "Pow") if mean is not None else None
    if epsilon is None or mean is None or square is None:
        return None
    if square.op_type == "Pow" and scalar(square.inputs[1]) != 2:
        return None
    factors = square.inputs if square.op_type == "Mul" else square.inputs[:1]
    # Some exporters write the difference once for the numerator and once for the variance.
    centred = [_centred(value) for value in (quotient.numerator, *factors)]
    same = [c for c in centred if c is not None and centred[0] is not None and c[0] is centred[0][0]]
    if len(same) < len(centred):
        return None
    nodes = [*quotient.nodes, add, mean, square, *(node for _, nodes in same for node in nodes)]
    return _Found(same[0][0], epsilon, [mean, *(nodes[-1] for _, nodes in same)], nodes)


def _centred(value: ir.Value | None) -> tuple[ir.Value, list[ir.Node]] | None:
    """What x − mean(x) is of, and its nodes, the mean last; PyTorch casts float16 to float32 after the difference."""
    cast = producer(value, "Cast")
    subtract = producer(cast.inputs[0] if cast is not None else value, "Sub")
    mean = producer(subtract.inputs[1], "ReduceMean") if subtract is not None else None
    if subtract is None or mean is None or mean.inputs[0] is not subtract.inputs[0]:
        return None
    return operand(subtract, 0), [*([cast] if cast is not None else []), subtract, mean]


def _axes(mean: ir.Node, rank: int) -> tuple[int, ...]:
    """The axes that a ReduceMean runs over, counted from the first."""
    given = mean.attributes.get_ints("axes", ())
    if len(mean.inputs) > 1 and mean.inputs[1] is not None:
        given = tuple(np.atleast_1d(array(mean.inputs[1]))) if constant(mean.inputs[1]) is not None else ()
    return tuple(sorted(int(axis) % rank for axis in given)) or tuple(range(rank))


def _without_casts(x: ir.Value, end: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """The value before a Cast that only serves the norm, and the last node with it: the Cast back; or None.

    The Casts stay, outside, when the affine part is computed in the wider type too.
    """
    back = only_consumer(end.outputs[0], "Cast")
    to = ir.DataType(back.attributes.get_int("to", 0)) if back is not None else None
    cast = producer(x, "Cast")
    if back is not None and cast is not None and cast.inputs[0] is not None and cast.inputs[0].dtype == to:
        return cast.inputs[0], back
    if x.dtype == end.outputs[0].dtype:
        return x, end
    return (x, back) if back is not None and x.dtype == to else None
