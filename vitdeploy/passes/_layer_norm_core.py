"""Match the LayerNorm that ends in a division, in every form that exporters write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import array, constant, dims, only_consumer, operand, producer, scalar


@dataclass(frozen=True)
class NormMatch:
    """A normalisation without its affine part: `output` = (x − mean) / √(variance + ε) over the channels of x.

    Attributes:
        nodes: the nodes to remove, the last one first.
        attributes: of the `LayerNormalization` to write.
        scale: the scale of a `LayerNormalization` that is in the graph already, unless it is all ones.
    """

    nodes: list[ir.Node]
    x: ir.Value
    output: ir.Value
    channels: int
    attributes: dict[str, Any]
    scale: ir.Value | None = None


def _count_channels(shape: tuple[int | None, ...], end: ir.Node) -> int | None:
    """Return the size of the last axis; where shape inference lost it, the size of the weight behind `end`.

    A weight with more than one number can differ in size from the channels only if there is a single channel. Every
    norm over a single channel is zero.
    """
    multiply = only_consumer(end.outputs[0], "Mul")
    weights = [t for v in multiply.inputs if (t := constant(v)) is not None and t.size > 1] if multiply else []
    return shape[-1] or (weights[0].size if weights else None)


@dataclass(frozen=True)
class _Quotient:
    """numerator / √variance, and the nodes that compute the root or its reciprocal."""

    numerator: ir.Value
    variance: ir.Value
    nodes: list[ir.Node]


@dataclass(frozen=True)
class _Norm:
    """(x − mean) / √(mean((x − mean)²) + ε) over any axes, its ReduceMean nodes, and all nodes above its division."""

    x: ir.Value
    epsilon: float
    means: list[ir.Node]
    nodes: list[ir.Node]


def match_norm(end: ir.Node) -> NormMatch | str | None:
    """Match the norm whose division is `end`.

    Return the reason if `LayerNormalization` cannot express it, and None if it is not a norm.
    """
    norms = (_match_mean_and_variance(quotient) for quotient in _match_quotients(end))
    norm = next((norm for norm in norms if norm is not None), None)
    if norm is None:
        return None
    x, shape = norm.x, dims(norm.x)
    channels = _count_channels(shape, end) if shape else None
    if not shape or channels is None:
        return "the number of its channels is not known"
    for mean in norm.means:
        if (axes := _axes(mean, len(shape))) != (len(shape) - 1,):
            return f"it normalises over axes {axes} of {len(shape)}, not over the last"
        if not mean.attributes.get_int("keepdims", 1):
            return "its mean drops the axis that it runs over (keepdims = 0)"
    nodes = list(dict.fromkeys([end, *norm.nodes]))
    inside = set(nodes)
    for node in nodes[1:]:
        value = node.outputs[0]
        if value.is_graph_output() or any(use.node not in inside for use in value.uses()):
            return f"its {node.op_type} ({node.name}) is read by another node"
    if len(dims(end.outputs[0]) or ()) != len(shape):
        return "its epsilon adds an axis to the result"
    cast_ends = _skip_casts(x, end)
    if cast_ends is None:
        return "its result has another data type than its input"
    source, last = cast_ends
    if last is not end:
        nodes.insert(0, last)
    return NormMatch(nodes, source, last.outputs[0], channels, {"axis": -1, "epsilon": norm.epsilon})


def _match_quotients(end: ir.Node) -> list[_Quotient]:
    """Return all ways to read `end` as a division by a root: Div by it, or Mul by its reciprocal on either side."""
    if end.domain != "" or end.op_type not in ("Div", "Mul"):
        return []
    a, b = operand(end, 0), operand(end, 1)
    if end.op_type == "Div":
        sides = [(a, _match_power(b, 0.5))]
    else:
        sides = [(a, _match_reciprocal_root(b)), (b, _match_reciprocal_root(a))]
    return [_Quotient(numerator, root[0], root[1]) for numerator, root in sides if root is not None]


def _match_power(value: ir.Value, exponent: float) -> tuple[ir.Value, list[ir.Node]] | None:
    """Return the base if `value` is a power with this exponent, and the node that computes it."""
    node = producer(value, "Pow", "Sqrt")
    fits = node is not None and (exponent == 0.5 if node.op_type == "Sqrt" else scalar(node.inputs[1]) == exponent)
    return (operand(node, 0), [node]) if node is not None and fits else None


def _match_reciprocal_root(value: ir.Value) -> tuple[ir.Value, list[ir.Node]] | None:
    """Return v if `value` is 1 / √v, and the nodes that compute it."""
    node = producer(value, "Div", "Pow", "Reciprocal")
    if node is None:
        return None
    if node.op_type == "Pow":
        return _match_power(value, -0.5)
    if node.op_type == "Div" and scalar(node.inputs[0]) != 1:
        return None
    root = _match_power(operand(node, 1 if node.op_type == "Div" else 0), 0.5)
    return (root[0], [node, *root[1]]) if root is not None else None


def _match_mean_and_variance(quotient: _Quotient) -> _Norm | None:
    """Return the quotient as a norm if its numerator and its variance are of the same x."""
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
    # Some exporters write x − mean(x) once for the numerator and once for the variance.
    matches = [_match_centred(value) for value in (quotient.numerator, *factors)]
    centred = [m for m in matches if m is not None and matches[0] is not None and m[0] is matches[0][0]]
    if len(centred) < len(matches):
        return None
    nodes = [*quotient.nodes, add, mean, square, *(node for _, nodes in centred for node in nodes)]
    return _Norm(centred[0][0], epsilon, [mean, *(nodes[-1] for _, nodes in centred)], nodes)


def _match_centred(value: ir.Value | None) -> tuple[ir.Value, list[ir.Node]] | None:
    """Return x if `value` is x − mean(x), and its nodes, the ReduceMean last.

    PyTorch casts float16 to float32 after the subtraction.
    """
    cast = producer(value, "Cast")
    subtract = producer(cast.inputs[0] if cast is not None else value, "Sub")
    mean = producer(subtract.inputs[1], "ReduceMean") if subtract is not None else None
    if subtract is None or mean is None or mean.inputs[0] is not subtract.inputs[0]:
        return None
    return operand(subtract, 0), [*([cast] if cast is not None else []), subtract, mean]


def _axes(mean: ir.Node, rank: int) -> tuple[int, ...]:
    """Return the axes that a ReduceMean runs over, counted from the first."""
    axes = mean.attributes.get_ints("axes", ())
    if len(mean.inputs) > 1 and mean.inputs[1] is not None:
        axes = tuple(np.atleast_1d(array(mean.inputs[1]))) if constant(mean.inputs[1]) is not None else ()
    return tuple(sorted(int(axis) % rank for axis in axes)) or tuple(range(rank))


def _skip_casts(x: ir.Value, end: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """Return the value before a Cast that only serves the norm, and the Cast back behind the norm.

    Without such Casts, return x and `end`. Where the affine part is computed in the wider type too, the Casts stay.
    Return None where the data types of x and the result differ.
    """
    back = only_consumer(end.outputs[0], "Cast")
    to = ir.DataType(back.attributes.get_int("to", 0)) if back is not None else None
    cast = producer(x, "Cast")
    if back is not None and cast is not None and cast.inputs[0] is not None and cast.inputs[0].dtype == to:
        return cast.inputs[0], back
    if x.dtype == end.outputs[0].dtype:
        return x, end
    return (x, back) if back is not None and x.dtype == to else None
