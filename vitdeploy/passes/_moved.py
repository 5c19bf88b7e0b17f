"""Which channels of a linear arrive where, through operators that only move numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from vitdeploy.graph.model import array, constant, dims
from vitdeploy.session import Array

MOVING = {"Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Each output number is one of the numbers of the first input, chosen without looking at them. So it is with Concat
when all its inputs are known (Swin rolls its windows so)."""

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
    yield from follow(output, np.broadcast_to(numbers, sizes))


def follow(value: ir.Value, numbers: Array) -> Iterator[Arrival]:
    """Send `numbers`, of the shape that `value` has for one image, along every path from it.

    Raises:
        ValueError: a shape is not known well enough; the message says which.
    """
    known, queue, joins = {value: numbers}, [value], dict[ir.Node, None]()
    while queue:
        value = queue.pop(0)
        if value.is_graph_output():
            yield None, 0, known[value]
        for node in dict.fromkeys(use.node for use in value.uses()):
            if node.op_type == "Concat" and node.domain == "":
                joins[node] = None
                if not all(v in known for v in node.inputs):
                    continue  # moves once every part has arrived
            elif node.op_type not in MOVING or node.domain != "":
                yield from ((node, index, known[value]) for index, v in enumerate(node.inputs) if v is value)
                continue
            if node.outputs[0] not in known:
                known.update(zip(node.outputs, _moved(node, known), strict=True))
                queue += node.outputs
    for node in joins:
        if node.outputs[0] not in known:
            yield from ((node, index, known[v]) for index, v in enumerate(node.inputs) if v is not None and v in known)


def _moved(node: ir.Node, known: Mapping[ir.Value, Array]) -> list[Array]:
    feeds = {}
    for value in node.inputs:
        if value is not None and value in known:
            feeds[value.name or ""] = known[value]
        elif value is not None:
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
