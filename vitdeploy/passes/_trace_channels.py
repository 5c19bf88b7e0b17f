"""Trace where the channels of a linear arrive, through operators that only move numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from vitdeploy.graph.model import array, constant, dims
from vitdeploy.session import Array

MOVING = {"Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators whose outputs are numbers of their first input, chosen by position and not by value. Concat is one as well
if all its inputs were traced (Swin rolls its windows with it)."""

_STAND_IN = 1009
"""The tokens that are traced where their number varies. It is prime, so no reshape by a fixed number fits it."""

Arrival = tuple[ir.Node | None, int, Array]
"""A reader that does more than move numbers, the index of its input, and the channel number at each place of that
input. The reader is None for a graph output."""


def trace_channels(output: ir.Value, axis: int) -> Iterator[Arrival]:
    """Trace the channels of `output`, which lie on `axis`, to all readers that do more than move them.

    Each number of `output` is replaced by the number of its channel. ONNX's reference implementation runs the moving
    operators on these, so that q, k and v may be packed in any order. See `traced_sizes` for sizes that vary.

    Raises:
        ValueError: a shape is not known well enough; the message says which.
    """
    sizes = traced_sizes(output)
    if sizes is None:
        raise ValueError(f"the shape of {output.name} is not known")
    channels = np.arange(sizes[axis], dtype=np.int32).reshape([-1 if i == axis else 1 for i in range(len(sizes))])
    yield from trace(output, np.broadcast_to(channels, sizes))


def traced_sizes(value: ir.Value) -> list[int] | None:
    """Return the sizes in which a value is traced; None if its shape is not known well enough.

    A batch that varies is taken as 1, and one other size that varies, such as the tokens, as `_STAND_IN`.
    """
    shape = dims(value) or ()
    if not shape or shape[1:].count(None) > 1:
        return None
    return [n if n is not None else _STAND_IN if axis else 1 for axis, n in enumerate(shape)]


def trace(value: ir.Value, numbers: Array) -> Iterator[Arrival]:
    """Trace `numbers`, which stand for `value` in the shape that it has for one image, along every path.

    Raises:
        ValueError: a shape is not known well enough; the message says which.
    """
    traced, queue, joins = {value: numbers}, [value], dict[ir.Node, None]()
    while queue:
        value = queue.pop(0)
        if value.is_graph_output():
            yield None, 0, traced[value]
        for node in dict.fromkeys(use.node for use in value.uses()):
            is_in_branch = node.graph is not value.graph
            if node.op_type == "Concat" and node.domain == "" and not is_in_branch:
                joins[node] = None
                if not all(v in traced for v in node.inputs):
                    continue  # it runs once all its inputs are traced
            elif node.op_type not in MOVING or node.domain != "" or is_in_branch:
                yield from ((node, index, traced[value]) for index, v in enumerate(node.inputs) if v is value)
                continue
            if node.outputs[0] not in traced:
                traced.update(zip(node.outputs, _run_node(node, traced), strict=True))
                queue += node.outputs
    for node in joins:
        if node.outputs[0] not in traced:
            inputs = [(index, v) for index, v in enumerate(node.inputs) if v is not None and v in traced]
            yield from ((node, index, traced[v]) for index, v in inputs)


def _run_node(node: ir.Node, traced: Mapping[ir.Value, Array]) -> list[Array]:
    feeds = {}
    for value in node.inputs:
        if value is not None and value in traced:
            feeds[value.name or ""] = traced[value]
        elif value is not None:
            feeds[value.name or ""] = array(value) if constant(value) is not None else _target_shape(node)
    try:
        results = ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{node.name} does not run on one image: {error}") from error
    if not all(np.size(r) for r in results):
        raise ValueError(f"{node.name} gives an empty result for a batch of one")
    return [np.asarray(r) for r in results]


def _target_shape(node: ir.Node) -> Array:
    """Return the target shape that a Reshape computes at run time, from shape inference. One size may vary."""
    shape = dims(node.outputs[0]) if node.op_type == "Reshape" else None
    if shape is None or shape.count(None) > 1:
        raise ValueError(f"how {node.name} moves numbers depends on the image")
    return np.array([-1 if n is None else n for n in shape], np.int64)
