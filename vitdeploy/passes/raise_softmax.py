"""Restore a softmax over the last axis that works on a matrix."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, dims, only_consumer, operand, producer
from vitdeploy.passes import Pass, PassResult

_REST = -1
"""In a target shape: the size that is left over."""


class RaiseSoftmax(Pass):
    """Remove the reshapes around a softmax over the last axis.

        x (batch, heads, n, m) ─ Flatten ─ (batch · heads · n, m) ─ Softmax ─ Reshape   ─▶   x ─ Softmax(axis=-1)

    Up to opset 12 a softmax takes a matrix, so the conversion to a newer opset reshapes around it, which hides the
    attention. Left alone: a softmax over several axes, and a Reshape to another shape than that of x.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Rewrite; `fired` counts softmaxes."""
        fired = 0
        for softmax in [n for n in graph.nodes if n.op_type == "Softmax" and n.domain == ""]:
            around = _match(softmax)
            if around is None:
                continue
            flatten, reshape = around
            tape = ir.tape.Tape()
            result = tape.op("Softmax", [operand(flatten, 0)], {"axis": -1}, name=softmax.name)
            graph.replace([flatten, softmax, reshape], tape, reshape.outputs[0], result)
            fired += 1
        return PassResult(fired)


def _match(softmax: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Return the nodes that make the matrix and bring back the shape, or None."""
    matrix = softmax.inputs[0]
    flatten = producer(matrix, "Flatten", "Reshape")
    reshape = only_consumer(softmax.outputs[0], "Reshape")
    if matrix is None or flatten is None or reshape is None or only_consumer(matrix) is not softmax:
        return None
    x, sizes = flatten.inputs[0], dims(matrix)
    axis = softmax.attributes.get_int("axis", -1)
    if x is None or sizes is None or axis not in (-1, len(sizes) - 1) or not _restores(reshape, x):
        return None
    before = dims(x)
    same = before is not None and before[-1] is not None and before[-1] == sizes[-1]
    return (flatten, reshape) if same or _keeps_last(flatten, before) else None


def _keeps_last(flatten: ir.Node, before: tuple[int | None, ...] | None) -> bool:
    axis = flatten.attributes.get_int("axis", 1)
    return flatten.op_type == "Flatten" and before is not None and axis in (-1, len(before) - 1)


def _restores(reshape: ir.Node, x: ir.Value) -> bool:
    """Return True if the node gives its input the shape of `x`."""
    target = constant(reshape.inputs[1])
    if target is not None:  # the one size that varies is what is left over
        sizes = [_REST if size is None else size for size in dims(x) or ()]
        return sizes.count(_REST) <= 1 and target.numpy().tolist() == sizes
    shape = producer(reshape.inputs[1], "Shape")
    return shape is not None and shape.inputs[0] is x and not {"start", "end"} & set(shape.attributes)
