"""Fold the sizes that are fixed although the batch is not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, producer
from vitdeploy.session import Array


def fix_sizes(graph: Graph) -> int:
    """Replace each Slice or Gather of a Shape that picks only fixed sizes by a constant; how many there were.

        q (batch, heads, tokens, 64) ─ Shape ─ Slice [-1:] ─ Cast ─ Sqrt   ─▶   [64] ─ Cast ─ Sqrt

    The optimizer folds a Shape only whole. With a dynamic batch, PyTorch's legacy exporter so computes the scale of
    every attention at run time, where no pass and no fused kernel can see what it is. Folding the chain behind the
    constant is left to the optimizer.
    """
    picks = [n for n in graph.nodes if n.op_type in ("Gather", "Slice") and producer(n.inputs[0], "Shape") is not None]
    if not picks:
        return 0
    graph.infer_shapes()
    fixed = 0
    for node in picks:
        sizes = picked(node.outputs[0])
        if sizes is None or not all(isinstance(size, int) for size in sizes.flat):
            continue
        tape = ir.tape.Tape()
        value = tape.initializer(ir.tensor(sizes.astype(np.int64), name=f"{node.name}/sizes"))
        result = tape.op("Identity", [value], name=f"{node.name}/fixed")  # folded away by the optimizer
        graph.replace([node], tape, node.outputs[0], result)
        fixed += 1
    return fixed


def picked(value: ir.Value | None) -> Array | None:
    """The sizes, known or named, that `value` picks from a Shape; or None when it cannot be told which."""
    node = producer(value, "Gather", "Shape", "Slice")
    shape = node if node is None or node.op_type == "Shape" else producer(node.inputs[0], "Shape")
    whole = shape.inputs[0].shape if shape is not None and shape.inputs[0] is not None else None
    if node is None or shape is None or whole is None:
        return None
    kept = list(whole)[shape.attributes.get_int("start", 0) : shape.attributes.get_int("end", len(whole))]
    sizes = np.array(kept, object)
    if node is shape:
        return sizes
    if any(v is not None and constant(v) is None for v in node.inputs[1:]):
        return None
    options = [array(v) if v is not None else None for v in node.inputs[1:]]
    if node.op_type == "Gather":
        return np.asarray(sizes[options[0]], object)
    start, end, _, step = (int(o.reshape(-1)[0]) if o is not None else None for o in [*options, None, None][:4])
    return np.asarray(sizes[start:end:step], object)
