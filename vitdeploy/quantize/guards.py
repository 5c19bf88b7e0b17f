"""Find the divisions, roots and logarithms that float16 breaks because it cannot hold the number that guards them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, scalar
from vitdeploy.quantize.ranges import LARGEST_HALF

SMALLEST_DIVISOR = 1 / LARGEST_HALF
"""Below it even 1 divided by it is infinite in float16."""

NORM = "a norm of single operators: float16 loses its squares (D-FINE #98, DeepStream-Yolo #647)"
"""Public reports of detectors that find nothing in FP16 until their norms are in float32."""

_GUARDS = {"Add", "Clip", "Max", "Min", "Sub", "Where"}
_MOVES = {
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
}  # fmt: skip
_CARRIERS = _MOVES | {"Abs", "Clip", "Max", "Min", "Neg", "Sqrt", "Where"}
"""Operators behind which a guard still keeps a number away from 0."""
_SQUARES = {"Abs", "Pow", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
_SUMS = {"ReduceMean", "ReduceSum", "Sqrt"}
"""Operators of the magnitude that is guarded: the norm of a vector, its variance."""
_LARGEST_EPSILON = 1e-3
"""Larger constants are no guards against a division by 0."""
_DEEPEST = 8
"""Operators between a guard and its reader. Exporters write two to four."""


def find_lost_guards(graph: Graph) -> dict[str, str]:
    """Find the nodes between a number that float16 loses and the operator that relies on it, with the reason.

        x ─ ReduceL2 ─ Clip(1e-12) ─ Expand ─ Div     F.normalize: 0 / 0 in float16, where 1e-12 is 0
        x ─ Clip(1e-5) ─ Div ─ Log                    an inverse sigmoid: 1 / 1e-5 is infinite in float16
        x ─ Sub ─ Pow ─ ReduceMean ─ Add(eps) ─ Sqrt ─ Div        a norm that is no single operator

    The nodes that compute the guarded magnitude are among them: the squares of small numbers are 0 in float16 too.
    Left alone: a guard that float16 holds, and one that no division, root or logarithm reads.
    """
    reasons: dict[str, str] = {}
    for node in graph.nodes:
        if node.domain != "" or node.op_type not in _GUARDS:
            continue
        guard = _smallest_guard(node)
        if guard is None:
            continue
        magnitude = [n for value in node.inputs for n in _magnitude_above(value)]
        is_norm = node.op_type == "Add" and _is_variance(magnitude)
        path = _path_to_reader(node, guard, is_norm=is_norm)
        if path:
            reason = NORM if is_norm else _describe(guard)
            reasons.update({n.name or "": reason for n in (*magnitude, node, *path)})
    return reasons


def _describe(guard: float) -> str:
    lost = "is infinite" if guard > LARGEST_HALF else "is 0" if np.float16(guard) == 0 else "is too coarse"
    return f"a division that {guard:.3g} guards, which {lost} in float16"


def _smallest_guard(node: ir.Node) -> float | None:
    """Return the constant of a guard that float16 may lose: the smallest, or one that is too large."""
    places = range(1, len(node.inputs)) if node.op_type in ("Clip", "Where") else range(len(node.inputs))
    numbers = [abs(n) for place in places if (n := scalar(_float_input(node, place))) is not None and n != 0]
    lost = [n for n in numbers if np.isfinite(n) and (n > LARGEST_HALF or n < _LARGEST_EPSILON)]
    return min(lost, default=None)


def _float_input(node: ir.Node, place: int) -> ir.Value | None:
    value = node.inputs[place]
    tensor = constant(value)
    return value if tensor is not None and tensor.dtype == ir.DataType.FLOAT else None


def _magnitude_above(value: ir.Value | None) -> list[ir.Node]:
    """Return the nodes that compute the magnitude of the numbers that a guard keeps from 0; empty if it is none."""
    node = value.producer() if value is not None else None
    if node is None or node.domain != "":
        return []
    if node.op_type in _SQUARES or (node.op_type == "Mul" and len(set(node.inputs)) == 1):
        return [node]
    above = _magnitude_above(node.inputs[0]) if node.op_type in _SUMS | _MOVES else []
    return [node, *above] if above or node.op_type in _SUMS else []


def _is_variance(nodes: Collection[ir.Node]) -> bool:
    """Return whether these nodes compute a mean of squares."""
    operators = {node.op_type for node in nodes}
    return "ReduceMean" in operators and bool(operators & {"Mul", "Pow"})


def _path_to_reader(guard_node: ir.Node, guard: float, *, is_norm: bool) -> list[ir.Node]:
    """Return the nodes from a guard to the operators that rely on it, with these; empty if float16 holds it."""
    nodes: list[ir.Node] = []
    for use in guard_node.outputs[0].uses():
        nodes += _follow(use.node, use.idx, guard, is_norm=is_norm, depth=0)
    return nodes


def _follow(node: ir.Node, place: int, guard: float, *, is_norm: bool, depth: int) -> list[ir.Node]:
    if node.domain != "" or depth > _DEEPEST:
        return []
    is_lost = guard > LARGEST_HALF or guard < SMALLEST_DIVISOR or is_norm
    if node.op_type == "Reciprocal" or (node.op_type == "Div" and place == 1):
        return [node, *_logarithms_behind(node)] if is_lost else []
    if node.op_type == "Log" or (node.op_type == "Pow" and place == 0):
        return [node] if is_lost else []
    if node.op_type not in _CARRIERS:
        return []
    smaller = float(np.sqrt(guard)) if node.op_type == "Sqrt" and np.float16(guard) != 0 else guard
    behind = [
        n
        for output in node.outputs
        for use in output.uses()
        for n in _follow(use.node, use.idx, smaller, is_norm=is_norm, depth=depth + 1)
    ]
    if node.op_type == "Sqrt" and not behind and np.float16(guard) == 0:
        return [node]
    return [node, *behind] if behind else []


def _logarithms_behind(node: ir.Node) -> list[ir.Node]:
    """Return the Log that is read from a quotient, which may be infinite where the logarithm is not."""
    return [use.node for use in node.outputs[0].uses() if use.node.op_type == "Log"]
