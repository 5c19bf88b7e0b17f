"""Which channels of a linear arrive where, through operators that only move numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from vitdeploy.graph.model import array, constant, dims, operand
from vitdeploy.session import Array

MOVING = {"Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Each output number is one of the numbers of the first input, chosen without looking at them."""

Arrival = tuple[ir.Node | None, int, Array]
"""A reader that does more than move (None: the graph's caller), at which input, and the channels that it sees."""


def arrivals(output: ir.Value, axis: int) -> Iterator[Arrival]:
    """Send the number of its channel (on `axis`) along every path from `output`, to whatever reads it there.

    The operators run on these numbers in ONNX's own reference implementation, so that any packing order comes out
    right. An open first dimension (the batch) is taken as 1.

    Raises:
        ValueError: a shape is not known well enough; the message says which.
    """
    shape = [1 if n is None and i == 0 else n for i, n in enumerate(dims(output) or ())]
    if not shape or None in shape:
        raise ValueError(f"the shape of {output.name} is not known")
    sizes = [int(n or 0) for n in shape]
    numbers = np.arange(sizes[axis], dtype=np.int32).reshape([-1 if i == axis else 1 for i in range(len(sizes))])
    yield from _follow(output, np.broadcast_to(numbers, sizes))


def _follow(value: ir.Value, numbers: Array) -> Iterator[Arrival]:
    if value.is_graph_output():
        yield None, 0, numbers
    moved: dict[ir.Node, list[Array]] = {}
    for use in value.uses():
        if use.node.op_type in MOVING and use.node.domain == "":
            moved[use.node] = _moved(use.node, numbers)
        else:
            yield use.node, use.idx, numbers
    for node, results in moved.items():
        for output, result in zip(node.outputs, results, strict=True):
            yield from _follow(output, result)


def _moved(node: ir.Node, numbers: Array) -> list[Array]:
    feeds = {operand(node, 0).name or "": numbers}
    for value in node.inputs[1:]:
        if value is not None:
            feeds[value.name or ""] = array(value) if constant(value) is not None else _target_shape(node)
    try:
        results = ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{node.name} does not run on one image: {error}") from error
    if not all(np.size(r) for r in results):
        raise ValueError(f"{node.name} takes nothing of a batch of one")
    return [np.asarray(r) for r in results]


def _target_shape(node: ir.Node) -> Array:
    """The shape a Reshape computes at run time, as far as shape inference knows it: one dimension may be open."""
    shape = dims(node.outputs[0]) if node.op_type == "Reshape" else None
    if shape is None or shape.count(None) > 1:
        raise ValueError(f"what {node.name} does depends on the image")
    return np.array([-1 if n is None else n for n in shape], np.int64)
