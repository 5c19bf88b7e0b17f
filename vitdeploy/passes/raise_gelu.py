"""Write every GELU as one operator."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.graph.model import Graph, dims, only_consumer, operand, producer, scalar
from vitdeploy.graph.recognize import scope
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._naming import unique

_OPSET = 20
"""The first with `Gelu`."""

_TOLERANCE = 1e-3
"""Of constants, relative: float16 rounds by up to 0.5e-3."""

_LONGEST = 8
"""Operators in a row: the longest of the known spellings has six from its result to the cube of x."""

_CANDIDATES = 16
"""Values above the erf or tanh that are tried as the input x, nearest first: a GELU has fewer."""

_ARITHMETIC = ("Add", "Div", "Mul", "Pow", "Sub")

_Polynomial = dict[tuple[int, int], float]
"""Coefficients by the powers of x and of e, which is the erf or the tanh."""

# Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415, section 2.
_SLOPE = math.sqrt(2 / math.pi)
_FORMS: dict[str, tuple[str, _Polynomial]] = {
    "Erf": ("none", {(1, 0): math.sqrt(0.5)}),
    "Tanh": ("tanh", {(1, 0): _SLOPE, (3, 0): _SLOPE * 0.044715}),
}
"""What the erf or the tanh is taken of, and what `Gelu` calls the form."""

_RESULT: _Polynomial = {(1, 0): 0.5, (1, 1): 0.5}


class RaiseGelu(Pass):
    """x/2 · (1 + erf(x/√2)), or its approximation by tanh, becomes one node, in whatever order it is multiplied.

        x ─┬─ Div √2 ─ Erf ─ Add 1 ─ Mul ─ Mul 0.5                           ─▶   x ─ Gelu(approximate="none")
           └─────────────────────────┘
        x ─┬─ Pow 3 ─ Mul 0.045 ─ Add ─ Mul √(2/π) ─ Tanh ─ Add 1 ─ Mul …    ─▶   x ─ Gelu(approximate="tanh")
           └───────────────────────┘

    Both sides are compared as polynomials in x and the erf, so that the order of products does not matter. QuickGELU,
    x · sigmoid(1.702 x), is another function, and left alone. An erf of x/√2 that becomes no GELU is refused, and so
    is one whose intermediate result something else reads.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Raise every GELU; nothing in a graph below the opset of `Gelu`."""
        if graph.opset < _OPSET:
            return PassResult(0)
        fired, refused = 0, {}
        taken = {n.name for n in graph.nodes}
        for inner in [n for n in graph.nodes if n.op_type in _FORMS and n.domain == ""]:
            approximate, argument = _FORMS[inner.op_type]
            x = _input(operand(inner, 0), argument)
            if x is None:
                continue
            end = _end(inner.outputs[0], x)
            if end is None:
                refused[inner.name or ""] = f"what follows its {inner.op_type.lower()} is no GELU, or is read elsewhere"
                continue
            tape = ir.tape.Tape()
            name = unique(scope(inner), "Gelu", taken)
            taken.add(name)
            new = tape.op("Gelu", [x], {"approximate": approximate}, name=name)
            graph.replace([end], tape, end.outputs[0], new)
            fired += 1
        if fired:
            RemoveUnusedNodesPass()(graph.model)
        return PassResult(fired, refused)


def _input(argument: ir.Value, wanted: _Polynomial) -> ir.Value | None:
    """The value x of which `argument` is the polynomial `wanted`, or None."""
    candidates = [argument]
    for x in candidates:
        if _same(_polynomial(argument, x, None), wanted):
            return x
        node = producer(x, *_ARITHMETIC)
        if node is not None and len(candidates) < _CANDIDATES:
            candidates += [v for v in node.inputs if v is not None]
    return None


def _end(e: ir.Value, x: ir.Value) -> ir.Node | None:
    """The node that completes x/2 · (1 + e), with nothing else reading what stands between it and e."""
    value = e
    for _ in range(_LONGEST):
        node = only_consumer(value, *_ARITHMETIC)
        if node is None:
            return None
        value = node.outputs[0]
        if _same(_polynomial(value, x, e), _RESULT):
            # A constant of a higher rank than x would have added axes, which `Gelu` does not.
            ranks = [len(d) if (d := dims(v)) is not None else None for v in (x, value)]
            return node if ranks[0] == ranks[1] is not None else None
    return None


def _polynomial(value: ir.Value | None, x: ir.Value, e: ir.Value | None, length: int = _LONGEST) -> _Polynomial | None:
    """`value` in terms of x and e, or None when it is anything else."""
    if value is x:
        return {(1, 0): 1.0}
    if value is e:
        return {(0, 1): 1.0}
    if (number := scalar(value)) is not None:
        return {(0, 0): number}
    node = producer(value, *_ARITHMETIC)
    if node is None or length == 0:
        return None
    a, b = (_polynomial(v, x, e, length - 1) for v in node.inputs)
    return _combined(node.op_type, a, b) if a is not None and b is not None else None


def _combined(op_type: str, a: _Polynomial, b: _Polynomial) -> _Polynomial | None:
    if op_type == "Mul":
        return _product(a, b)
    if op_type in ("Add", "Sub"):
        sign = 1 if op_type == "Add" else -1
        return {power: a.get(power, 0.0) + sign * b.get(power, 0.0) for power in a.keys() | b.keys()}
    number = b[0, 0] if set(b) == {(0, 0)} else None  # of Div and Pow, the second must be one
    if op_type == "Div" and number:
        return {power: factor / number for power, factor in a.items()}
    if op_type == "Pow" and number in (2, 3):
        square = _product(a, a)
        return square if number == 2 else _product(square, a)
    return None


def _product(a: _Polynomial, b: _Polynomial) -> _Polynomial:
    result: _Polynomial = {}
    for (x1, e1), p in a.items():
        for (x2, e2), q in b.items():
            result[x1 + x2, e1 + e2] = result.get((x1 + x2, e1 + e2), 0.0) + p * q
    return result


def _same(found: _Polynomial | None, wanted: _Polynomial) -> bool:
    return (
        found is not None
        and found.keys() == wanted.keys()
        and all(math.isclose(found[power], wanted[power], rel_tol=_TOLERANCE) for power in wanted)
    )
