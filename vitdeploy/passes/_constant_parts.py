"""Compute what does not depend on the image, whatever operators it consists of."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.graph.model import Graph
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.session import Array

_KEPT = frozenset({
    "Bernoulli", "DequantizeLinear", "DynamicQuantizeLinear", "Multinomial", "QuantizeLinear", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip
"""Operators that give other numbers in every run, and those that hold the weights of a quantized model."""


def fold_constant_parts(graph: Graph, largest_bytes: int) -> tuple[int, dict[str, str]]:
    """Run every part of the graph that reads no input once in ONNX Runtime, and store its results.

        prompt ─ LayerNormalization ─ … ─ Attention ─ … ─ text features ─┐         text features ─┐
        image  ─ … ──────────────────────────────────────────────────── MatMul   ─▶ image ─ … ── MatMul

    The optimizer evaluates operators one by one, and skips those that give several results, such as LayerNormalization
    and Split. One of them in a frozen text tower keeps the whole tower in the graph.

    Args:
        graph: the graph. Its constants are those that the optimizer left.
        largest_bytes: a larger result is not stored; its part stays as it is.

    Returns:
        How many nodes are gone, and the reason for each result that is too large.
    """
    TopologicalSortPass()(graph.model)
    depends = _find_dependent(graph)
    results = [
        value
        for node in graph.nodes
        if node not in depends and node.op_type != "Constant"
        for value in node.outputs
        if (value.is_graph_output() and len(node.outputs) == 1) or any(use.node in depends for use in value.uses())
    ]
    if not results:
        return 0, {}
    arrays = _run(graph, results)
    before, too_large = graph.model.graph.num_nodes(), {}
    for value in results:
        numbers = arrays[value.name or ""]
        if numbers.nbytes > largest_bytes:
            too_large[value.name or ""] = (
                f"it does not depend on the image, but its result takes {numbers.nbytes / 2**20:.0f} MiB, more than "
                f"{largest_bytes / 2**20:.0f}"
            )
            continue
        stored = graph.initializer(numbers, f"{value.name}/computed")
        if value.is_graph_output():
            tape, node = ir.tape.Tape(), value.producer()
            assert node is not None
            graph.replace([node], tape, value, tape.op("Identity", [stored], name=f"{node.name}/computed"))
        else:
            ir.convenience.replace_all_uses_with(value, stored)
    RemoveUnusedNodesPass()(graph.model)
    return before - graph.model.graph.num_nodes(), too_large


def _find_dependent(graph: Graph) -> set[ir.Node]:
    """Return the nodes that depend on an input, are to stay, or contain a graph, and those behind them."""
    moving = {value for value in graph.model.graph.inputs if value.name not in graph.model.graph.initializers}
    dependent: set[ir.Node] = set()
    for node in graph.nodes:
        has_graph = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
        if node.op_type in _KEPT or node.domain or has_graph or any(value in moving for value in node.inputs):
            dependent.add(node)
            moving.update(node.outputs)
    return dependent


def _run(graph: Graph, results: list[ir.Value]) -> dict[str, Array]:
    """Return the numbers of `results`, by name."""
    part = ir.convenience.extract(graph.model.graph, [], results)
    model = ir.Model(part, ir_version=graph.model.ir_version)
    with scratch_folder("constants") as folder:
        path = folder / "part.onnx"
        Graph(model).save(path)
        with OnnxSession(path, lean=True) as session:
            return session.run({})
