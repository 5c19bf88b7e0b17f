"""Write the products of an attention, where they are an `Einsum`, as MatMul."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, dims, operand

Axes = tuple[int, ...]


def raise_products(graph: Graph) -> int:
    """Make each Einsum that is a product of matrices, batch by batch, a MatMul; how many there were.

        q, k ─ Einsum "bnhd,bmhd->bhnm"   ─▶   q ─ Transpose (0, 2, 1, 3) ────────────────────────── MatMul
                                               k ─ Transpose (0, 2, 1, 3) ─ Transpose (0, 1, 3, 2) ────┘

    One axis of both operands is summed over, each has one axis of its own, and the others are kept. Left alone: any
    other equation, a size that broadcasts, and a product with a constant.
    """
    raised = 0
    for node in [n for n in graph.nodes if n.op_type == "Einsum" and n.domain == "" and len(n.inputs) == 2]:
        plan = _plan(node)
        if plan is None or any(constant(value) is not None for value in node.inputs):
            continue
        tape, name = ir.tape.Tape(), node.name or ""
        left = _transposed(tape, operand(node, plan.first), plan.left, f"{name}/transpose_a")
        right = operand(node, 1 - plan.first)
        for step, perm in enumerate(plan.right):
            right = _transposed(tape, right, perm, f"{name}/transpose_b{step or ''}")
        result = tape.op("MatMul", [left, right], name=f"{name}/MatMul")
        if plan.result != tuple(range(len(plan.result))):
            rows, columns = dims(left), dims(right)
            if rows is not None and columns is not None:
                result.shape, result.type = ir.Shape([*rows[:-1], columns[-1]]), node.outputs[0].type
            result = tape.op("Transpose", [result], {"perm": plan.result}, name=f"{name}/transpose")
        graph.replace([node], tape, node.outputs[0], result)
        raised += 1
    return raised


@dataclass(frozen=True)
class _Plan:
    """Which operand comes first, and how to transpose both and the product."""

    first: int
    left: Axes
    right: tuple[Axes, ...]
    result: Axes


def _plan(node: ir.Node) -> _Plan | None:
    """None if the equation is no product of matrices."""
    operands, arrow, out = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    terms = operands.split(",")
    if not arrow or len(terms) != 2 or not all(t.isalpha() and len(set(t)) == len(t) for t in (*terms, out)):
        return None
    sizes: dict[str, set[int | None]] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        for letter, size in zip(term, dims(value) or (), strict=False):
            sizes.setdefault(letter, set()).add(size)
    own = [[letter for letter in term if letter not in other] for term, other in zip(terms, terms[::-1], strict=True)]
    summed = [letter for letter in terms[0] if letter in terms[1] and letter not in out]
    batch = [letter for letter in out if letter in terms[0] and letter in terms[1]]
    if [len(own[0]), len(own[1]), len(summed)] != [1, 1, 1] or sorted(out) != sorted([*batch, *own[0], *own[1]]):
        return None
    if any(len(known - {None}) > 1 for known in sizes.values()):
        return None
    first = 0 if out.index(own[0][0]) < out.index(own[1][0]) else 1  # so that the product needs no transpose, mostly
    (a, b), (rows, columns) = (terms[first], terms[1 - first]), (own[first], own[1 - first])
    inner, outer = [*batch, *summed, *columns], [*batch, *columns, *summed]
    # Keys are taken from before a transpose of the last two axes: it stands alone.
    swap = b.index(columns[0]) < b.index(summed[0])
    last_two = (*range(len(batch)), len(batch) + 1, len(batch))
    return _Plan(
        first,
        _order(a, [*batch, *rows, *summed]),
        (_order(b, outer), last_two) if swap else (_order(b, inner),),
        _order("".join([*batch, *rows, *columns]), out),
    )


def _order(source: str, target: Iterable[str]) -> Axes:
    return tuple(source.index(letter) for letter in target)


def _transposed(tape: ir.tape.Tape, value: ir.Value, perm: Axes, name: str) -> ir.Value:
    if perm == tuple(range(len(perm))):
        return value
    result = tape.op("Transpose", [value], {"perm": perm}, name=name)
    shape = dims(value)
    result.shape, result.type = (None if shape is None else ir.Shape([shape[i] for i in perm])), value.type
    return result
