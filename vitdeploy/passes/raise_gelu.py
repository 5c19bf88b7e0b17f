"""Replace every GELU by one operator."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.graph.model import Graph, dims, only_consumer, operand, producer, scalar
from vitdeploy.graph.recognize import scope
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._naming import unique_name

_OPSET = 20
"""The first opset with `Gelu`."""

_TOLERANCE = 1e-3
"""Relative tolerance of constants. Float16 rounds by up to 0.5e-3."""

_LONGEST = 8
"""Operators in a row. The longest known spelling has six from its result to the cube of x."""

_CANDIDATES = 16
"""Values above the erf or tanh to try as the input x, nearest first. A GELU has fewer."""

_ARITHMETIC = ("Add", "Div", "Mul", "Pow", "Sub")

_Polynomial = dict[tuple[int, int], float]
"""Coefficients by the powers of x and e, where e is the erf or the tanh."""

# Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415, section 2.
_SLOPE = math.sqrt(2 / math.pi)
_FORMS: dict[str, tuple[str, _Polynomial]] = {
    "Erf": ("none", {(1, 0): math.sqrt(0.5)}),
    "Tanh": ("tanh", {(1, 0): _SLOPE, (3, 0): _SLOPE * 0.044715}),
}
"""For each operator: the `approximate` attribute of `Gelu`, and the argument as a polynomial in x."""

_RESULT: _Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
"""x/2 · (1 + e)."""


class RaiseGelu(Pass):
    """Replace x/2 · (1 + erf(x/√2)), or its approximation by tanh, by one node.

        x ─┬─ Div √2 ─ Erf ─ Add 1 ─ Mul ─ Mul 0.5                           ─▶   x ─ Gelu(approximate="none")
           └─────────────────────────┘
        x ─┬─ Pow 3 ─ Mul 0.045 ─ Add ─ Mul √(2/π) ─ Tanh ─ Add 1 ─ Mul …    ─▶   x ─ Gelu(approximate="tanh")
           └───────────────────────┘

    The graph is compared with the formula as a polynomial in x and the erf, so that the order of products does not
    matter. Left alone: QuickGELU, x · sigmoid(1.702 x), which is another function. Refused: an erf of x/√2 without the
    rest of a GELU behind it, and a GELU whose intermediate result another node reads.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Raise every GELU. A graph below the opset of `Gelu` is left alone."""
        if graph.opset < _OPSET:
            return PassResult(0)
        fired, refused = 0, {}
        used_names = {n.name for n in graph.nodes}
        for inner in [n for n in graph.nodes if n.op_type in _FORMS and n.domain == ""]:
            approximate, argument = _FORMS[inner.op_type]
            x = _find_input(operand(inner, 0), argument)
            if x is None:
                continue
            end = _find_end(inner.outputs[0], x)
            if end is None:
                refused[inner.name or ""] = f"no GELU follows its {inner.op_type}, or another node reads a part of it"
                continue
            tape = ir.tape.Tape()
            name = unique_name(scope(inner), "Gelu", used_names)
            used_names.add(name)
            new = tape.op("Gelu", [x], {"approximate": approximate}, name=name)
            graph.replace([end], tape, end.outputs[0], new)
            fired += 1
        if fired:
            RemoveUnusedNodesPass()(graph.model)
        return PassResult(fired, refused)


def _find_input(argument: ir.Value, polynomial: _Polynomial) -> ir.Value | None:
    """Return the value x of which `argument` is this polynomial, or None."""
    candidates = [argument]
    for x in candidates:
        if _is_equal(_expand(argument, x, None), polynomial):
            return x
        node = producer(x, *_ARITHMETIC)
        if node is not None and len(candidates) < _CANDIDATES:
            candidates += [v for v in node.inputs if v is not None]
    return None


def _find_end(e: ir.Value, x: ir.Value) -> ir.Node | None:
    """Return the node that gives x/2 · (1 + e), if no other node reads the values between e and it."""
    value = e
    for _ in range(_LONGEST):
        node = only_consumer(value, *_ARITHMETIC)
        if node is None:
            return None
        value = node.outputs[0]
        if _is_equal(_expand(value, x, e), _RESULT):
            # A constant of a higher rank than x adds axes to the result. `Gelu` does not.
            ranks = [len(d) if (d := dims(v)) is not None else None for v in (x, value)]
            return node if ranks[0] == ranks[1] is not None else None
    return None


def _expand(value: ir.Value | None, x: ir.Value, e: ir.Value | None, length: int = _LONGEST) -> _Polynomial | None:
    """Expand `value` to a polynomial in x and e, or return None if it is not one."""
    if value is x:
        return {(1, 0): 1.0}
    if value is e:
        return {(0, 1): 1.0}
    if (number := scalar(value)) is not None:
        return {(0, 0): number}
    node = producer(value, *_ARITHMETIC)
    if node is None or length == 0:
        return None
    a, b = (_expand(v, x, e, length - 1) for v in node.inputs)
    return _combine(node.op_type, a, b) if a is not None and b is not None else None


def _combine(op_type: str, a: _Polynomial, b: _Polynomial) -> _Polynomial | None:
    if op_type == "Mul":
        return _multiply(a, b)
    if op_type in ("Add", "Sub"):
        sign = 1 if op_type == "Add" else -1
        return {power: a.get(power, 0.0) + sign * b.get(power, 0.0) for power in a.keys() | b.keys()}
    number = b[0, 0] if set(b) == {(0, 0)} else None  # Div and Pow need a number as second operand
    if op_type == "Div" and number:
        return {power: factor / number for power, factor in a.items()}
    if op_type == "Pow" and number in (2, 3):
        square = _multiply(a, a)
        return square if number == 2 else _multiply(square, a)
    return None


def _multiply(a: _Polynomial, b: _Polynomial) -> _Polynomial:
    result: _Polynomial = {}
    for (x1, e1), p in a.items():
        for (x2, e2), q in b.items():
            result[x1 + x2, e1 + e2] = result.get((x1 + x2, e1 + e2), 0.0) + p * q
    return result


def _is_equal(a: _Polynomial | None, b: _Polynomial) -> bool:
    return (
        a is not None
        and a.keys() == b.keys()
        and all(math.isclose(a[power], b[power], rel_tol=_TOLERANCE) for power in b)
    )
