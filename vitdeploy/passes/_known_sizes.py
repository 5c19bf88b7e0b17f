"""Fold sizes that are fixed in graphs whose batch varies."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, producer
from vitdeploy.session import Array


def fold_fixed_sizes(graph: Graph) -> int:
    """Replace each Slice or Gather of a Shape that picks only fixed sizes by a constant. Return how many there were.

        q (batch, heads, tokens, 64) ─ Shape ─ Slice [-1:] ─ Cast ─ Sqrt   ─▶   [64] ─ Cast ─ Sqrt

    The optimizer folds a Shape only if all its sizes are fixed. For a dynamic batch, PyTorch's legacy exporter computes
    the scale of every attention from a Shape. That happens at run time, where no pass and no fused kernel can read it.
    The optimizer folds the operators behind the new constant.
    """
    picks = [n for n in graph.nodes if n.op_type in ("Gather", "Slice") and producer(n.inputs[0], "Shape") is not None]
    if not picks:
        return 0
    graph.infer_shapes()
    fixed = 0
    for node in picks:
        sizes = picked_sizes(node.outputs[0])
        if sizes is None or not all(isinstance(size, int) for size in sizes.flat):
            continue
        tape = ir.tape.Tape()
        value = tape.initializer(ir.tensor(sizes.astype(np.int64), name=f"{node.name}/sizes"))
        result = tape.op("Identity", [value], name=f"{node.name}/fixed")  # folded away by the optimizer
        graph.replace([node], tape, node.outputs[0], result)
        fixed += 1
    return fixed


def picked_sizes(value: ir.Value | None) -> Array | None:
    """Return the sizes that `value` picks from a Shape: numbers, or names of sizes that vary.

    Return None if `value` does not come from a Shape, or if which sizes it picks is not constant.
    """
    node = producer(value, "Gather", "Shape", "Slice")
    shape = node if node is None or node.op_type == "Shape" else producer(node.inputs[0], "Shape")
    dimensions = shape.inputs[0].shape if shape is not None and shape.inputs[0] is not None else None
    if node is None or shape is None or dimensions is None:
        return None
    start, end = shape.attributes.get_int("start", 0), shape.attributes.get_int("end", len(dimensions))
    sizes = np.array(list(dimensions)[start:end], object)
    if node is shape:
        return sizes
    if any(v is not None and constant(v) is None for v in node.inputs[1:]):
        return None
    operands = [array(v) if v is not None else None for v in node.inputs[1:]]
    if node.op_type == "Gather":
        return np.asarray(sizes[operands[0]], object)
    first, last, _, step = (int(o.reshape(-1)[0]) if o is not None else None for o in [*operands, None, None][:4])
    return np.asarray(sizes[first:last:step], object)
