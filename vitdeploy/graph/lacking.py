"""Refuse a graph with operators that the target lacks, before anything is calibrated or compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.errors import CompileError
from vitdeploy.graph.dialect import Dialect

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph


def refuse_lacking(graph: Graph, dialect: Dialect, target: str) -> None:
    """Refuse operators that the compiler of `target` does not know, also inside of branches and loops.

    Raises:
        CompileError: there is one. The message names its node, and what writes it in PyTorch.
    """
    nodes = [n for n in graph.model.graph.all_nodes() if n.domain == "" and n.op_type in dialect.lacks]
    if not nodes:
        return
    first, types = nodes[0], list(dict.fromkeys(node.op_type for node in nodes))
    more = len(nodes) - 1
    others = f", and {more} more of the kind" if more and len(types) == 1 else ""
    others = others or (f", nor {', '.join(types[1:])}" if more else "")
    raise CompileError(
        f"{target} has no {first.op_type} ({dialect.lacks[first.op_type]}), which node {first.name!r} needs{others}",
        fix="Use --target openvino or onnxruntime, or write that part of the model with other operations.",
    )
