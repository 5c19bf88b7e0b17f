"""Bring attention of any rank to (batch, heads, tokens, size), and its result back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import constant, dims, producer
from vitdeploy.session import Array

Sizes = tuple[int | None, ...]
"""Sizes of axes; None for one that varies."""

_MOVES = frozenset({
    "Add", "Cast", "Concat", "Div", "Expand", "Gather", "Identity", "Mul", "Neg", "Reshape", "Slice", "Split",
    "Squeeze", "Sub", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators between a linear and its attention, through which the number of heads is looked for."""


@dataclass(frozen=True)
class Form:
    """The batch and the heads that the axes in front of the tokens become.

        (batch, heads, windows, …) ─ Transpose ─ (batch, windows, heads, …) ─ Reshape ─ (batch · windows, heads, …)
        (batch · heads, …)         ────────────────────────────────────────── Reshape ─ (batch, heads, …)

    Attributes:
        batch, heads: the two sizes.
        perm: the order in which the axes are merged; None if it is their own.
    """

    batch: int | None
    heads: int | None
    perm: tuple[int, ...] | None = None

    @property
    def sizes(self) -> Sizes:
        """The batch and the heads."""
        return self.batch, self.heads


def choose_form(lead: Sizes, operands: Iterable[tuple[ir.Value, int | None]], *, is_open: bool) -> Form:
    """Return the form for scores whose axes in front of the tokens have the sizes `lead`.

    Every form gives the same numbers. That with the heads of the model, into which the channels of q or k are split,
    is preferred: kernels are made for it, and reports read well with it.

    Args:
        lead: the sizes.
        operands: q and k, each with its head size.
        is_open: whether the number of tokens varies, so that no other size can be found from it.
    """
    if len(lead) == 2:
        return Form(*lead)
    if not lead:
        return Form(1, 1)
    heads = next((n for x, size in operands if (n := _count_heads(x, size)) is not None), None)
    if len(lead) == 1:
        size = lead[0]
        if heads is not None and not is_open and (size is None or size % heads == 0):
            return Form(None if size is None else size // heads, heads)
        return Form(1, size) if size is not None else Form(None, 1)
    places = [axis for axis in range(1, len(lead)) if lead[axis] == heads]
    if heads is None or not places:
        return Form(lead[0], count(lead[1:]))
    others = [axis for axis in range(len(lead)) if axis != places[-1]]
    perm = (*others, places[-1])
    return Form(count(lead[a] for a in others), heads, None if perm == tuple(range(len(lead))) else perm)


def count(sizes: Iterable[int | None]) -> int | None:
    """Return the product of sizes; None if one of them varies."""
    known = list(sizes)
    return None if None in known else math.prod(n for n in known if n is not None)


def _count_heads(value: ir.Value, size: int | None) -> int | None:
    """Return the heads that the channels of q or k are split into; None if what computes it does not tell."""
    node = producer(value)
    while size and node is not None and node.op_type in _MOVES:
        source = next((v for v in node.inputs if v is not None and constant(v) is None), None)
        if source is None:
            return None
        before, after = dims(source), dims(node.outputs[0])
        is_split = node.op_type == "Reshape" and before is not None and after is not None and after[-1] == size
        value, node = source, producer(source)
        if not is_split or before is None or after is None:
            continue
        if len(before) == 4 and before[2:] == after[1:]:  # (batch · heads, tokens, size)
            return before[1]
        channels = before[-1]
        if channels and channels > size and channels % size == 0:
            # (…, heads, size) or (…, 3, heads, size); or (tokens, batch · heads, size), where the heads have no axis
            return after[-2] if len(after) > len(before) else channels // size
    is_linear = node is not None and node.op_type in ("Gemm", "MatMul")
    return 1 if is_linear and (dims(value) or (None,))[-1] == size else None


def pair_groups(one: Sizes, other: Sizes) -> list[tuple[slice, slice]]:
    """Pair the axes of two views of the same elements, in groups that cover the same elements.

        (2, 3, 20) and (6, 4, 5):   2, 3 and 6;   20 and 4, 5

    A size that varies ends the comparison: it is in one group with everything in front of it.
    """
    groups: list[tuple[slice, slice]] = []
    end_a, end_b = len(one), len(other)
    while end_a and end_b:
        start_a, start_b = end_a - 1, end_b - 1
        while (a := count(one[start_a:end_a])) != (b := count(other[start_b:end_b])):
            if a is None or b is None:
                start_a = start_b = 0
                break
            start_a, start_b = (start_a - 1, start_b) if a < b else (start_a, start_b - 1)
            if min(start_a, start_b) < 0:
                raise ValueError(f"{one} and {other} are not views of the same elements")
        groups.append((slice(start_a, end_a), slice(start_b, end_b)))
        end_a, end_b = start_a, start_b
    return [*([(slice(0, end_a), slice(0, end_b))] if end_a or end_b else []), *groups[::-1]]


def plan_view(sizes: Sizes, view: Sizes, target: Sizes) -> tuple[Sizes, Sizes] | None:
    """Return how a value that broadcasts against `view` of some elements is made to broadcast against `target`.

    The value is expanded to the first sizes of the result, and reshaped to the second. Axes that it broadcasts along
    stay of size 1 where all axes of a group do. Where only some do, as in decomposed relative positions, it must be
    expanded; None if that needs a size that varies.
    """
    padded = (1,) * (len(view) - len(sizes)) + sizes
    expanded, result = list(padded), [1] * len(target)
    for here, there in pair_groups(view, target):
        if all(n == 1 for n in padded[here]):
            continue
        if padded[here] != view[here]:
            if None in view[here]:
                return None
            expanded[here] = view[here]
        result[there] = target[there]  # type: ignore[assignment]
    return tuple(expanded), tuple(result)


class FormWriter:
    """A tape for operators that only move numbers. Those that would do nothing are left out."""

    def __init__(self, tape: ir.tape.Tape, form: Form, name: str) -> None:
        self.tape, self.form, self.name = tape, form, name

    def bring(self, value: ir.Value, lead: Sizes, label: str, *, is_transposed: bool = False) -> ir.Value:
        """Bring q, k or v to (batch, heads, tokens, size).

        Args:
            value: (…, tokens, size), or (…, size, tokens) if `is_transposed`.
            lead: the sizes in front of those, to which the value is expanded.
            label: what the value is, for the names of nodes.
            is_transposed: see above.
        """
        tail = (dims(value) or ())[-2:]
        value = self.view(self._expand(value, (*lead, *tail), label), (*lead, *tail), f"{label}_rank")
        rank = len(lead)
        order = (*(self.form.perm or range(rank)), *((rank + 1, rank) if is_transposed else (rank, rank + 1)))
        value = self._transpose(value, order, label)
        return self.view(value, (*self.form.sizes, *(dims(value) or ())[-2:]), label)

    def bring_back(self, value: ir.Value, lead: Sizes, shape: Sizes, *, is_transposed: bool = False) -> ir.Value:
        """Bring a result (batch, heads, tokens, size) to `shape`, which ends with (size, tokens) if `is_transposed`.

        `lead` are the sizes in front of the tokens, as the operands had them.
        """
        tail = (shape[-1], shape[-2]) if is_transposed else shape[-2:]
        rank, perm = len(shape) - 2, self.form.perm
        ordered = shape[:-2] if perm is None else tuple(lead[axis] for axis in perm)
        value = self.view(value, (*ordered, *tail), "result")
        back = tuple(range(rank)) if perm is None else tuple(sorted(range(rank), key=perm.__getitem__))
        return self._transpose(value, (*back, *((rank + 1, rank) if is_transposed else (rank, rank + 1))), "result")

    def bring_summand(self, value: ir.Value, view: Sizes, lead: Sizes, tokens: Sizes, label: str) -> ir.Value | None:
        """Bring a summand of the scores to 4-D; None if that needs a size that varies.

        Args:
            value: the numbers, which broadcast against `view`.
            view: the sizes of the scores where they are added.
            lead: the sizes in front of (queries, keys) in the product.
            tokens: the numbers of queries and keys.
            label: for the names of nodes.
        """
        target: Sizes = (*self.form.sizes, *tokens)
        if view == target:
            return value
        if self.form.perm is not None:
            whole = (*lead, *tokens)
            first = self._change_view(value, view, whole, f"{label}_whole")
            if first is None:
                return None
            order = (*self.form.perm, len(lead), len(lead) + 1)
            value, view = self._transpose(first, order, label), tuple(whole[axis] for axis in order)
        return self._change_view(value, view, target, label)

    def _change_view(self, value: ir.Value, view: Sizes, target: Sizes, label: str) -> ir.Value | None:
        sizes = dims(value)
        plan = None if sizes is None or len(sizes) > len(view) else plan_view(sizes, view, target)
        if plan is None:
            return None
        expanded, result = plan
        return self.view(self._expand(value, expanded, label), result, label)

    def view(self, value: ir.Value, shape: Sizes, label: str) -> ir.Value:
        """Reshape to `shape`. Where several sizes vary, the shapes may only differ in axes of size 1."""
        before = dims(value)
        if before == shape:
            return value
        if (tensor := constant(value)) is not None:
            return self.constant(tensor.numpy().reshape([-1 if n is None else n for n in shape]), label)
        if shape.count(None) < 2:
            sizes = self._ints([-1 if n is None else n for n in shape], f"{label}_shape")
            return self._write("Reshape", [value, sizes], shape, f"{label}_view")
        longer, shorter = sorted((before or (), shape), key=len, reverse=True)
        axes = [axis for axis, size in enumerate(longer) if size == 1][: len(longer) - len(shorter)]
        op_type = "Unsqueeze" if longer is shape else "Squeeze"
        return self._write(op_type, [value, self._ints(axes, f"{label}_axes")], shape, f"{label}_view")

    def _expand(self, value: ir.Value, shape: Sizes, label: str) -> ir.Value:
        """Broadcast to `shape`. A size that varies is one that the value has already."""
        before = dims(value) or ()
        if (1,) * (len(shape) - len(before)) + before == shape:
            return value
        if (tensor := constant(value)) is not None:
            return self.constant(np.broadcast_to(tensor.numpy(), [n or 1 for n in shape]), f"{label}_expanded")
        sizes = self._ints([n or 1 for n in shape], f"{label}_sizes")
        return self._write("Expand", [value, sizes], shape, f"{label}_expand")

    def _transpose(self, value: ir.Value, perm: tuple[int, ...], label: str) -> ir.Value:
        if perm == tuple(range(len(perm))):
            return value
        sizes = dims(value) or ()
        value = self.view(value, (1,) * (len(perm) - len(sizes)) + sizes, f"{label}_rank")
        if (tensor := constant(value)) is not None:
            return self.constant(tensor.numpy().transpose(perm), f"{label}_transposed")
        sizes = dims(value) or ()
        result = self.tape.op("Transpose", [value], {"perm": perm}, name=f"{self.name}/{label}_transpose")
        result.shape, result.type = ir.Shape([sizes[axis] for axis in perm]), value.type
        return result

    def transpose_last(self, value: ir.Value, label: str) -> ir.Value:
        """Exchange the last two axes."""
        rank = max(2, len(dims(value) or ()))
        return self._transpose(value, (*range(rank - 2), rank - 1, rank - 2), label)

    def constant(self, numbers: Array, label: str) -> ir.Value:
        """Add a constant."""
        return self.tape.initializer(ir.tensor(np.ascontiguousarray(numbers), name=f"{self.name}/{label}"))

    def _write(self, op_type: str, inputs: list[ir.Value], shape: Sizes, label: str) -> ir.Value:
        result = self.tape.op(op_type, inputs, name=f"{self.name}/{label}")
        result.shape, result.type = ir.Shape(shape), inputs[0].type
        return result

    def _ints(self, numbers: list[int], label: str) -> ir.Value:
        return self.tape.initializer(ir.tensor(np.array(numbers, np.int64), name=f"{self.name}/{label}"))
