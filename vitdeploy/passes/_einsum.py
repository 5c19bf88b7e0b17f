"""Replace the products of an attention that are written as `Einsum` by MatMul."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, dims, operand

Axes = tuple[int, ...]


def raise_products(graph: Graph) -> int:
    """Replace each Einsum that is a batched product of matrices by a MatMul. Return how many there were.

        q, k ─ Einsum "bnhd,bmhd->bhnm"   ─▶   q ─ Transpose (0, 2, 1, 3) ────────────────────────── MatMul
                                               k ─ Transpose (0, 2, 1, 3) ─ Transpose (0, 1, 3, 2) ────┘

    The equation sums over one axis that both operands share. Each operand has one further axis that only it has. All
    other axes are batch axes. Left alone: any other equation, a size that broadcasts, and a product with a constant.
    """
    raised = 0
    for node in [n for n in graph.nodes if n.op_type == "Einsum" and n.domain == "" and len(n.inputs) == 2]:
        plan = _make_plan(node)
        if plan is None or any(constant(value) is not None for value in node.inputs):
            continue
        tape, name = ir.tape.Tape(), node.name or ""
        left = _transpose(tape, operand(node, plan.first), plan.left, f"{name}/transpose_a")
        right = operand(node, 1 - plan.first)
        for step, perm in enumerate(plan.right):
            right = _transpose(tape, right, perm, f"{name}/transpose_b{step or ''}")
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
    """A plan to write an Einsum as MatMul.

    Attributes:
        first: index of the operand that comes first.
        left: permutation of the first operand.
        right: permutations of the second operand, one after the other.
        result: permutation of the product.
    """

    first: int
    left: Axes
    right: tuple[Axes, ...]
    result: Axes


def _make_plan(node: ir.Node) -> _Plan | None:
    """Return how to write `node` as MatMul; None if its equation is not a batched product of matrices."""
    operands, arrow, out = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    terms = operands.split(",")
    if not arrow or len(terms) != 2 or not all(t.isalpha() and len(set(t)) == len(t) for t in (*terms, out)):
        return None
    sizes: dict[str, set[int | None]] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        for letter, size in zip(term, dims(value) or (), strict=False):
            sizes.setdefault(letter, set()).add(size)
    outer = [[letter for letter in term if letter not in other] for term, other in zip(terms, terms[::-1], strict=True)]
    summed = [letter for letter in terms[0] if letter in terms[1] and letter not in out]
    batch = [letter for letter in out if letter in terms[0] and letter in terms[1]]
    if any(len(letters) != 1 for letters in (*outer, summed)) or sorted(out) != sorted([*batch, *outer[0], *outer[1]]):
        return None
    if any(len(letter_sizes - {None}) > 1 for letter_sizes in sizes.values()):
        return None
    first = 0 if out.index(outer[0][0]) < out.index(outer[1][0]) else 1  # then the product mostly needs no transpose
    (a, b), (rows, columns) = (terms[first], terms[1 - first]), (outer[first], outer[1 - first])
    untransposed, transposed = [*batch, *summed, *columns], [*batch, *columns, *summed]
    # `match_attention` finds the keys before a transpose of the last two axes, so that transpose is a separate node.
    swap = b.index(columns[0]) < b.index(summed[0])
    last_two = (*range(len(batch)), len(batch) + 1, len(batch))
    return _Plan(
        first,
        _permutation(a, [*batch, *rows, *summed]),
        (_permutation(b, transposed), last_two) if swap else (_permutation(b, untransposed),),
        _permutation("".join([*batch, *rows, *columns]), out),
    )


def _permutation(source: str, target: Iterable[str]) -> Axes:
    return tuple(source.index(letter) for letter in target)


def _transpose(tape: ir.tape.Tape, value: ir.Value, perm: Axes, name: str) -> ir.Value:
    if perm == tuple(range(len(perm))):
        return value
    result = tape.op("Transpose", [value], {"perm": perm}, name=name)
    shape = dims(value)
    result.shape, result.type = (None if shape is None else ir.Shape([shape[i] for i in perm])), value.type
    return result
