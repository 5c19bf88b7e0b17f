"""Replace a Gather by a table of places, as exporters write nn.Unfold, by moves."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, dims
from vitdeploy.passes import Pass, PassResult
from vitdeploy.session import Array


class RaiseUnfold(Pass):
    """Write a Gather whose indices have several axes as Reshape and Transpose, or with a vector of indices.

        x (B, C, 6, W) ─ Gather(axis 2, [[0, 2, 4], [1, 3, 5]]) (B, C, 2, 3, W)
     ─▶ x ─ Reshape (B, C, 3, 2, W) ─ Transpose (0, 1, 3, 2, 4)        patches that touch take each place once
     ─▶ x ─ Gather(axis 2, [0, 1, 2, 1, 2, 3]) ─ Reshape               patches that overlap

    Exporters write nn.Unfold so, for each side of the image. Engines know moves best. OpenVINO 2026.4.1 refuses an INT8
    graph with such a table behind a convolution: it moves the scales of the channels past it, with the rank of before.
    Left alone: indices that are computed, and shapes of which more than one size varies.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Rewrite every Gather with a constant table of indices."""
        graph.infer_shapes()
        tables = [node for node in graph.nodes if _has_table(node)]
        for node in tables:
            _rewrite(graph, node)
        return PassResult(len(tables))


def _has_table(node: ir.Node) -> bool:
    if node.op_type != "Gather" or node.domain != "" or constant(node.inputs[0]) is not None:
        return False
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if constant(node.inputs[1]) is None or before is None or after is None or after.count(None) > 1:
        return False
    return array(node.inputs[1]).ndim > 1 and before[node.attributes.get_int("axis", 0) % len(before)] is not None


def _rewrite(graph: Graph, node: ir.Node) -> None:
    tape, value = ir.tape.Tape(), node.inputs[0]
    before, after = list(dims(value) or ()), list(dims(node.outputs[0]) or ())
    axis = node.attributes.get_int("axis", 0) % len(before)
    size = before[axis] or 0
    table = array(node.inputs[1]).astype(np.int64) % size
    order = _find_order(table, size)
    if order is None:
        value = tape.op("Gather", [value, _ints(tape, f"{node.name}/indices", table.reshape(-1))], {"axis": axis},
                        name=f"{node.name}/Gather")  # fmt: skip
        shape, perm = after, None
    else:
        factors = [table.shape[number] for number in order]
        shape = [*before[:axis], *factors, *before[axis + 1 :]]
        inner = [axis + int(number) for number in np.argsort(order)]
        perm = [*range(axis), *inner, *range(axis + len(inner), len(shape))]
    codes = np.array([-1 if n is None else n for n in shape], np.int64)
    value = tape.op("Reshape", [value, _ints(tape, f"{node.name}/shape", codes)], name=f"{node.name}/Reshape")
    if perm is not None:
        value = tape.op("Transpose", [value], {"perm": perm}, name=node.name)
    graph.replace([node], tape, node.outputs[0], value)


def _find_order(table: Array, size: int) -> list[int] | None:
    """Return the axes of a table in the order in which they split `range(size)`; None if it is no permutation.

    The entry at (i, j) is i · stride i + j · stride j, where the strides are those of a contiguous array.
    """
    strides = [
        int(np.take(table, 1, axis).flat[0] - table.flat[0]) if n > 1 else size for axis, n in enumerate(table.shape)
    ]
    order = sorted(range(table.ndim), key=lambda axis: -strides[axis])
    factors = [table.shape[axis] for axis in order]
    expected = np.arange(size)
    if math.prod(factors) != size:
        return None
    return order if np.array_equal(expected.reshape(factors).transpose(np.argsort(order)), table) else None


def _ints(tape: ir.tape.Tape, name: str, numbers: Array) -> ir.Value:
    return tape.initializer(ir.tensor(numbers, name=name))
