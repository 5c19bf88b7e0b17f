"""Make inner tensors of a graph outputs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from vitdeploy.graph.model import Graph, load


def with_outputs(source: Path | Graph, tensors: Collection[str], path: Path) -> frozenset[str]:
    """Write a copy of the graph to `path` that has `tensors` as further outputs.

    Args:
        source: a graph, which is not changed, or the file of one.
        tensors: names of values. Names that the graph does not have are ignored.
        path: the file to write, outside of the folder of `source`.

    Returns:
        The names among `tensors` that the graph has.
    """
    graph = load(source) if isinstance(source, Path) else Graph(source.model.clone())
    outputs = graph.model.graph.outputs
    output_names = {value.name for value in outputs}
    values = {v.name: v for node in graph.nodes for v in node.outputs if v.name in tensors and v.name}
    for name, value in values.items():
        if name not in output_names:
            # The value has no type where shape inference does not know a target's operators. ONNX Runtime infers it.
            outputs.append(value)
    graph.save(path)
    return frozenset(values)


def tensors_between(path: Path, start: str, end: str) -> list[str]:
    """Return the floating-point tensors behind `start` up to `end`, in order.

    If `start` is an input of the graph, return all tensors up to `end`.
    """
    names = [value.name or "" for node in load(path).nodes for value in node.outputs if _is_floating(value)]
    first = names.index(start) + 1 if start in names else 0
    return names[first : names.index(end) + 1] if end in names else names[first:]


def _is_floating(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()
