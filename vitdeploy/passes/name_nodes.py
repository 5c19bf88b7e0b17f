"""Name every node after its module, and remove the metadata that exporters write."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult

_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_MODULE = "_empty_nn_module_stack"
"""The start of a scope that torch.export gives to its own computations, such as the batch size."""


class NameNodes(Pass):
    """Give nodes unique names that people recognise in an engine plan, and remove metadata.

        node_MatMul_38  {name_scopes: ['', 'blocks.0', 'blocks.0.attn.proj', 'linear_1'], stack_trace: /home/…}
     ─▶ blocks.0.attn.proj/MatMul

    Values are named after their nodes (`blocks.0.attn.proj/MatMul:0`), because some engines name a kernel after its
    output. Left alone: names that are unique and come without module scopes. The legacy exporter writes such names, and
    they are module paths already. Stack traces contain local paths, so without them the same model gives the same bytes
    on every machine.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Rename nodes and remove metadata."""
        counts: Counter[str] = Counter()
        renamed = 0
        for node in graph.model.graph.all_nodes():
            base = _scoped_name(node) or (node.name or "").strip("/") or node.op_type
            name = f"{base}_{counts[base]}" if counts[base] else base
            while name != base and counts[name]:
                counts[base] += 1
                name = f"{base}_{counts[base]}"
            counts[base] += 1
            if name != base:
                counts[name] += 1
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
    """Return a name such as `blocks.0.attn/Softmax` from the dynamo exporter's module scopes, or None without them."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, ""))
    except (ValueError, SyntaxError):
        return None
    modules = [s for s in scopes[:-1] if s and not s.startswith(_NO_MODULE)] if isinstance(scopes, list) else []
    return f"{modules[-1] if modules else 'model'}/{node.op_type}"
