"""Name every node after the module it came from, then drop what exporters leave behind."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult

_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_MODULE = "_empty_nn_module_stack"
"""How torch.export begins the scope of what it computes itself, such as the batch size."""


class NameNodes(Pass):
    """Give nodes unique names that people recognise in an engine plan, and strip metadata.

        node_MatMul_38  {name_scopes: ['', 'blocks.0', 'blocks.0.attn.proj', 'linear_1'], stack_trace: /home/…}
     ─▶ blocks.0.attn.proj/MatMul

    Values are named after their nodes (`blocks.0.attn.proj/MatMul:0`), because some engines name a kernel after what
    it computes. Names that are already unique and come without module scopes (the legacy exporter writes paths itself)
    stay.
    Stack traces hold local paths: without them the same model gives the same bytes on every machine.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Rename and strip."""
        taken: Counter[str] = Counter()
        renamed = 0
        for node in graph.model.graph.all_nodes():
            scoped = _scoped_name(node)
            wanted = scoped or (node.name or "").strip("/") or node.op_type
            name = f"{wanted}_{taken[wanted]}" if taken[wanted] else wanted
            while name != wanted and taken[name]:
                taken[wanted] += 1
                name = f"{wanted}_{taken[wanted]}"
            taken[wanted] += 1
            if name != wanted:
                taken[name] += 1
            renamed += node.name != name
            node.name = name
            _name_outputs(node)
        ClearMetadataAndDocStringPass()(graph.model)
        graph.model.metadata_props.clear()
        graph.model.graph.name = "vit"
        return PassResult(renamed)


def _name_outputs(node: ir.Node) -> None:
    for index, value in enumerate(node.outputs):
        if not value.is_graph_output():
            value.name = f"{node.name}:{index}"


def _scoped_name(node: ir.Node) -> str | None:
    """`blocks.0.attn/Softmax` from the module scopes the dynamo exporter records, or None."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, ""))
    except (ValueError, SyntaxError):
        return None
    modules = [s for s in scopes[:-1] if s and not s.startswith(_NO_MODULE)] if isinstance(scopes, list) else []
    return f"{modules[-1] if modules else 'model'}/{node.op_type}"
