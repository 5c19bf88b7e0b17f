"""Replace chains of Reshape and Transpose by the shortest chain that moves numbers in the same way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.graph.model import Graph, constant, dims, only_consumer, operand
from vitdeploy.passes import Pass, PassResult

Sizes = tuple[int | None, ...]

_VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_MOST_AXES = 8
"""TensorRT takes no tensor with more axes."""


class MergeMoves(Pass):
    """Merge operators that only move numbers, so that passes and engines see the plain form.

        x (n, b, h·d) ─ Reshape (n, b·h, d) ─ Transpose (1, 0, 2) ─ Reshape (b, h, n, d)
     ─▶ x (n, b, h·d) ─ Reshape (n, b, h, d) ─ Transpose (1, 2, 0, 3)

    Each axis is a product of factors. A chain puts the factors of its input into the order and groups of its output.
    That takes no operator, a Reshape, a Transpose, both, or a Reshape on both sides of a Transpose. Moving an axis of
    size 1 is a Reshape. Left alone: chains that are as short already, values that something else reads too, Reshapes
    that regroup across factors, such as (3, 2) to (2, 3), Reshapes that split a size that varies together with another,
    which need not divide by itself, and sizes that are not known; one size, such as the batch, may vary. A chain that
    needs more than 8 axes in one Reshape, as Hiera's order of tokens, is merged in parts.

    A Reshape of the leading axes goes before the Transpose of the others: TensorRT-RTX 1.7 does not fuse attention
    whose queries have the Reshape between the Transpose and the product.

        q (B, d, N) ─ Transpose (0, 2, 1) ─ Reshape (1, B, N, d)
     ─▶ q (B, d, N) ─ Reshape (1, B, d, N) ─ Transpose (0, 1, 3, 2)
    """

    def apply(self, graph: Graph) -> PassResult:
        """Merge every chain."""
        graph.infer_shapes()  # passes before this one write moves without shapes
        fired = 0
        for last in [node for node in graph.nodes if _is_move(node)]:
            if (reader := only_consumer(last.outputs[0])) is not None and _is_move(reader):
                continue  # not the end of its chain
            chain = _find_chain(last)
            while chain:
                part, plan = _plan_longest(chain)
                if plan is not None and (len(plan) < len(part) or _puts_view_first(part, plan)):
                    _write(graph, part, plan)
                    fired += 1
                chain = chain[: -len(part)]
        if fired:
            RemoveUnusedNodesPass()(graph.model)
        return PassResult(fired)


_Step = tuple[str, Sizes]
"""An operator, and the shape of a Reshape or the permutation of a Transpose."""

_VIEW_FIRST = ["Reshape", "Transpose"]


@dataclass(eq=False)
class _Factor:
    """A factor of an axis. It may be split into further ones, most significant first."""

    size: int | None
    parts: list[_Factor] = field(default_factory=list)

    def leaves(self) -> Iterator[_Factor]:
        """Yield the factors that it was split into, or itself."""
        if not self.parts:
            yield self
        for part in self.parts:
            yield from part.leaves()


def _is_move(node: ir.Node) -> bool:
    is_view = node.op_type in _VIEWS and all(constant(value) is not None for value in node.inputs[1:])
    if node.domain or not (is_view or node.op_type == "Transpose"):
        return False
    return dims(node.inputs[0]) is not None and dims(node.outputs[0]) is not None


def _find_chain(last: ir.Node) -> list[ir.Node]:
    """Return the moves that end with `last`, as far up as nothing else reads what is between them."""
    chain = [last]
    while (node := operand(chain[0], 0).producer()) is not None and _is_move(node):
        if only_consumer(node.outputs[0]) is None:
            break
        chain.insert(0, node)
    return chain


def _plan_longest(chain: list[ir.Node]) -> tuple[list[ir.Node], list[_Step] | None]:
    """Return the longest end of `chain` whose plan has no more axes than an engine takes, and that plan."""
    for start in range(len(chain)):
        part = chain[start:]
        plan = _make_plan(part)
        if plan is None or max((len(numbers) for _, numbers in plan), default=0) <= _MOST_AXES:
            return part, plan
    return chain, None  # each operator by itself has more axes: nothing can make it smaller


def _puts_view_first(chain: list[ir.Node], plan: list[_Step]) -> bool:
    """Return True if `plan` changes the leading axes before it moves the others, and `chain` does so after it."""
    if [node.op_type == "Transpose" for node in chain] != [True, False] or [step[0] for step in plan] != _VIEW_FIRST:
        return False
    after = tuple(axis or 0 for axis in plan[1][1])
    before = chain[0].attributes.get_ints("perm", tuple(reversed(range(len(after)))))
    return _moved_axes(before) == _moved_axes(after)


def _moved_axes(perm: Sequence[int]) -> tuple[int, ...]:
    """Return the permutation without the leading axes that stay: (0, 1, 3, 2) gives (1, 0)."""
    first = next((number for number, axis in enumerate(perm) if axis != number), len(perm))
    return tuple(axis - first for axis in perm[first:])


def _make_plan(chain: list[ir.Node]) -> list[_Step] | None:
    """Return the fewest steps that do what `chain` does; None if its sizes are not known well enough."""
    before, after = dims(chain[0].inputs[0]) or (), dims(chain[-1].outputs[0]) or ()
    if any(shape.count(None) > 1 for shape in (before, *(dims(node.outputs[0]) or () for node in chain))):
        return None
    source = [_Factor(size) for size in before]
    axes = [[factor] for factor in source]
    for node in chain:
        shape = dims(node.outputs[0]) or ()
        if node.op_type == "Transpose":
            perm = node.attributes.get_ints("perm", tuple(reversed(range(len(axes)))))
            axes = [axes[axis] for axis in perm]
        elif (regrouped := _regroup([leaf for axis in axes for f in axis for leaf in f.leaves()], shape)) is not None:
            axes = regrouped
        else:
            return None
    old = [[leaf for leaf in factor.leaves() if leaf.size != 1] for factor in source]
    new = [[leaf for factor in axis for leaf in factor.leaves() if leaf.size != 1] for axis in axes]
    return _plan_steps(old, new, before, after)


def _regroup(factors: list[_Factor], shape: Sizes) -> list[list[_Factor]] | None:
    """Group `factors` into axes of the sizes `shape`, and split them where needed; None if that is not possible."""
    groups: list[list[_Factor]] = []
    pending, varying = list(factors), shape.index(None) if None in shape else len(shape)
    unsplit = [factor for factor in factors if factor.size is None]
    right = [_take(pending, size, from_end=True) for size in reversed(shape[varying:]) if size is not None]
    left = [_take(pending, size, from_end=False) for size in shape[:varying] if size is not None]
    for group in [*left, *([pending] if varying < len(shape) else []), *reversed(right)]:
        if group is None:
            return None
        groups.append(group)
    if any(factor.parts for factor in unsplit) and any(factor.size not in (None, 1) for factor in pending):
        return None  # (N, 6) is (3, N · 2) for every N, but (3, N / 3, 6) only if 3 divides N
    return groups if varying < len(shape) or all(factor.size == 1 for factor in pending) else None


def _take(pending: list[_Factor], size: int, *, from_end: bool) -> list[_Factor] | None:
    """Take factors with the product `size` from one end of `pending`; None if no split gives it."""
    taken: list[_Factor] = []
    while size > 1:
        if not pending:
            return None
        factor = pending.pop() if from_end else pending.pop(0)
        have = factor.size
        if have is not None and size % have == 0:
            size //= have
            taken.append(factor)
            continue
        if have is not None and have % size:
            return None
        rest, piece = _Factor(None if have is None else have // size), _Factor(size)
        factor.parts = [rest, piece] if from_end else [piece, rest]
        pending.insert(len(pending) if from_end else 0, rest)
        taken.append(piece)
        size = 1
    return taken[::-1] if from_end else taken


def _plan_steps(old: list[list[_Factor]], new: list[list[_Factor]], before: Sizes, after: Sizes) -> list[_Step]:
    order = [leaf for axis in old for leaf in axis]
    if order == [leaf for axis in new for leaf in axis]:
        return [] if before == after else [("Reshape", after)]
    place = {leaf: number for number, leaf in enumerate(order)}
    if all(_is_run([place[leaf] for leaf in axis]) for axis in new):  # Reshape to the axes of the output, and reorder
        perm = _order_of(new, place)
        shape = tuple(after[axis] for axis in perm)
        return [*([] if shape == before else [("Reshape", shape)]), ("Transpose", _invert(perm))]
    place = {leaf: number for number, leaf in enumerate(leaf for axis in new for leaf in axis)}
    if all(_is_run([place[leaf] for leaf in axis]) for axis in old):  # reorder the axes of the input, and Reshape
        perm = _order_of(old, place)
        shape = tuple(before[axis] for axis in perm)
        return [("Transpose", perm), *([] if shape == after else [("Reshape", after)])]
    blocks = _find_blocks(order, place)
    perm = tuple(sorted(range(len(blocks)), key=lambda number: place[blocks[number][0]]))
    return [("Reshape", tuple(_size(block) for block in blocks)), ("Transpose", perm), ("Reshape", after)]


def _is_run(places: list[int]) -> bool:
    return places == list(range(places[0], places[0] + len(places))) if places else True


def _order_of(axes: list[list[_Factor]], place: dict[_Factor, int]) -> tuple[int, ...]:
    """Return the axes in the order of their first factors. An axis of size 1 keeps its place."""
    real = sorted((axis for axis in range(len(axes)) if axes[axis]), key=lambda axis: place[axes[axis][0]])
    for axis in range(len(axes)):
        if not axes[axis]:
            real.insert(axis, axis)
    return tuple(real)


def _invert(perm: Sizes) -> tuple[int, ...]:
    return tuple(int(n) for n in np.argsort(np.array(perm)))


def _find_blocks(order: list[_Factor], place: dict[_Factor, int]) -> list[list[_Factor]]:
    """Return the longest runs of factors that stay beside each other."""
    blocks = [[order[0]]]
    for leaf in order[1:]:
        if place[leaf] == place[blocks[-1][-1]] + 1:
            blocks[-1].append(leaf)
        else:
            blocks.append([leaf])
    return blocks


def _size(block: list[_Factor]) -> int | None:
    size = 1
    for factor in block:
        if factor.size is None:
            return None
        size *= factor.size
    return size


def _write(graph: Graph, chain: list[ir.Node], plan: list[_Step]) -> None:
    tape, output = ir.tape.Tape(), chain[-1].outputs[0]
    value = operand(chain[0], 0)
    for step, (op_type, numbers) in enumerate(plan):
        sizes = dims(value) or ()
        name = f"{chain[-1].name}/{op_type}" if step + 1 < len(plan) else chain[-1].name
        if op_type == "Transpose":
            perm = [axis or 0 for axis in numbers]
            shape = tuple(sizes[axis] for axis in perm)
            moved = tape.op("Transpose", [value], {"perm": perm}, name=name)
        else:
            shape = numbers
            moved = tape.op("Reshape", [value, _ints(tape, _shape_codes(sizes, shape), f"{name}/shape")], name=name)
        moved.shape, moved.type = ir.Shape(shape), value.type
        value = moved
    if not plan and not output.is_graph_output():
        ir.convenience.replace_all_uses_with(output, value)
        return
    if not plan:
        value = tape.op("Identity", [value], name=chain[-1].name)
    graph.replace([chain[-1]], tape, output, value)


def _shape_codes(before: Sizes, after: Sizes) -> list[int]:
    """Return the sizes as Reshape takes them: -1 for the one that varies, or 0 where it is copied as it is.

    Shape inference keeps the name of a size only through a 0.
    """
    known = [math.prod(n for n in sizes if n is not None) for sizes in (before, after)]
    is_copied = None in before and None in after and before.index(None) == after.index(None) and known[0] == known[1]
    return [n if n is not None else 0 if is_copied else -1 for n in after]


def _ints(tape: ir.tape.Tape, numbers: list[int], name: str) -> ir.Value:
    return tape.initializer(ir.tensor(np.array(numbers, np.int64), name=name))
