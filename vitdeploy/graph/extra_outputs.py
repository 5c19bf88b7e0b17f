"""Let a graph on disk give tensors that are inside it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from vitdeploy.graph.model import Graph, load


def with_outputs(source: Path | Graph, tensors: Collection[str], path: Path) -> frozenset[str]:
    """Write to `path` what computes the same and gives `tensors` besides; those that it has, the others left out.

    Args:
        source: a graph, left as it is, or the file of one.
        tensors: names of values.
        path: outside of the folder of `source`.
    """
    graph = load(source) if isinstance(source, Path) else Graph(source.model.clone())
    outputs = graph.model.graph.outputs
    given = {value.name for value in outputs}
    found = {v.name: v for node in graph.nodes for v in node.outputs if v.name in tensors and v.name}
    for name, value in found.items():
        if name not in given:
            # Not typed where lowering's own operators hide the type from shape inference: ONNX Runtime infers it.
            outputs.append(value)
    graph.save(path)
    return frozenset(found)


def computed(path: Path, start: str, end: str) -> list[str]:
    """The tensors that are computed behind `start` up to `end`, in order; all up to `end`, if `start` is an input."""
    names = [value.name or "" for node in load(path).nodes for value in node.outputs if _floating(value)]
    first = names.index(start) + 1 if start in names else 0
    return names[first : names.index(end) + 1] if end in names else names[first:]


def _floating(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()
