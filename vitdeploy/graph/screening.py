"""Check a foreign ONNX file: refuse what is inconsistent, and what would make results about the model false.

Each error names the node or tensor. A file that passes may still fail in ONNX Runtime, which runs it next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from vitdeploy.errors import GraphError
from vitdeploy.graph.dialect import CONTRIB
from vitdeploy.graph.model import constant, dims
from vitdeploy.limits import MAX_NODES
from vitdeploy.session import Array

_STANDARD = ("", "ai.onnx")
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
_QUANTIZED = {
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    "QuantizeLinear",
}  # fmt: skip
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_MAX_CALLS = 32  # functions that call each other
_WEIGHTED = ("Conv", "Gemm", "MatMul")


def screen(model: ir.Model, path: Path) -> None:
    """Refuse a graph that is inconsistent, or about which results would be false.

    Raises:
        GraphError: the first problem.
    """
    _check_versions(model, path)
    _check_size(model, path)
    for node in model.graph.all_nodes():
        _check_control_flow(node, path)
        _check_operator(node, model, path)
        _check_data_types(node, path)
        _check_inputs(node, path)
    _check_names(model, path)
    _check_outputs(model.graph, path)


def check_declared(model: ir.Model, outputs: Mapping[str, Array], path: Path) -> None:
    """Refuse a graph whose outputs have other shapes than it declares. Runtimes only warn, engines rely on them.

    Args:
        model: the graph in `path`.
        outputs: what the graph computes, by name.
        path: the file, for the message.

    Raises:
        GraphError: the first output with a wrong shape.
    """
    for value in model.graph.outputs:
        declared, computed = dims(value), list(outputs[str(value.name)].shape)
        if declared and not (len(declared) == len(computed) and all(map(_fits, declared, computed))):
            raise GraphError(
                f"{path} declares the output {value.name}{value.shape} but computes {computed}",
                fix="Export it again, or correct the declared shape.",
            )


def _fits(declared: int | None, computed: int) -> bool:
    return declared in (None, computed)


def _check_versions(model: ir.Model, path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    opset, version = model.opset_imports[""], model.ir_version
    if opset > newest or version > onnx.IR_VERSION:
        raise GraphError(
            f"{path} has opset {opset} and ONNX IR {version}, but onnx {onnx.__version__} reads at most opset {newest} "
            f"and IR {onnx.IR_VERSION}",
            fix="Export it with opset 18 or later, but not newer than that, or update onnx and onnxruntime.",
        )


def _check_size(model: ir.Model, path: Path) -> None:
    """Refuse a graph of too many nodes, counting those of a function at each call, and functions in circles."""
    limit, counts = MAX_NODES.value, dict[ir.OperatorIdentifier, int]()

    def count(nodes: Iterable[ir.Node], depth: int) -> int:
        if depth > _MAX_CALLS:
            raise GraphError(f"{path}: its functions call each other too deeply", fix="Export it without functions.")
        total = 0
        for node in nodes:
            name = node.op_identifier()
            if name in model.functions and name not in counts:
                counts[name] = count(model.functions[name].all_nodes(), depth + 1)
            total += counts.get(name, 1)
            if total > limit:
                raise GraphError(f"{path} has more than {limit:,} nodes", fix=MAX_NODES.fix)
        return total

    count(model.graph.all_nodes(), 0)
    for function in model.functions.values():
        for node in function.all_nodes():
            _check_control_flow(node, path)


def _check_control_flow(node: ir.Node, path: Path) -> None:
    """Refuse loops. What is in them cannot be audited, and a file of 300 bytes may say 2^62 rounds."""
    if node.op_type != "If" and any(a.type in _GRAPHS for a in node.attributes.values()):
        raise GraphError(
            f"{path}: node {_describe(node)} is {node.op_type}, and the operators inside control flow cannot be "
            "checked",
            fix="Export the model without branches and loops that depend on data.",
        )


def _check_operator(node: ir.Node, model: ir.Model, path: Path) -> None:
    """Refuse an operator that is not standard ONNX, or that gives random numbers."""
    prefix = f"{path}: node {_describe(node)}"
    if node.op_identifier() in model.functions:
        return
    if node.domain == CONTRIB:
        raise GraphError(
            f"{prefix} is {node.op_type} of {CONTRIB}, which only ONNX Runtime has and which hides other operators",
            fix="Use the model as it was exported, before ONNX Runtime optimised it.",
        )
    if node.domain not in _STANDARD:
        raise GraphError(
            f"{prefix} is {node.op_type} of {node.domain}, which is not an operator of ONNX",
            fix="Export the model with standard operators, or define this operator as an ONNX function.",
        )
    if not onnx.defs.has(node.op_type):
        raise GraphError(f"{prefix} is {node.op_type}, which is not an operator of ONNX", fix="Export the model again.")
    if node.op_type in _RANDOM or _is_training_dropout(node):
        raise GraphError(
            f"{prefix} ({node.op_type}) draws random numbers: the same image gives a different answer each time",
            fix="Export the model in eval mode.",
        )


def _is_training_dropout(node: ir.Node) -> bool:
    flag = constant(node.inputs[2]) if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    return flag is not None and bool(flag.numpy().any())


def is_quantized(model: ir.Model) -> bool:
    """Return True if the graph, or a function in it, has an operator that quantizes or computes in integers."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    nodes = (node for graph in graphs for node in graph.all_nodes())
    return any(node.op_type in _QUANTIZED and node.domain in _STANDARD for node in nodes)


def _check_data_types(node: ir.Node, path: Path) -> None:
    """Refuse double, because the file is the float32 reference that everything is compared with."""
    dtype = node.inputs[1].dtype if node.op_type in _WEIGHTED and len(node.inputs) > 1 and node.inputs[1] else None
    if dtype == ir.DataType.DOUBLE:
        raise GraphError(
            f"{path}: node {_describe(node)} ({node.op_type}) computes in {dtype.name.lower()}, so there is no FP32 to "
            "compare with",
            fix="Use the float32 model: vitdeploy lowers its precision.",
        )


def _check_inputs(node: ir.Node, path: Path) -> None:
    for value in node.inputs:
        if value is not None and not (value.producer() or value.is_graph_input() or value.is_initializer()):
            raise GraphError(
                f"{path}: node {_describe(node)} ({node.op_type}) reads {value.name!r}, which nothing computes",
                fix="Save the model again, with dense initializers instead of sparse ones.",
            )


def _check_names(model: ir.Model, path: Path) -> None:
    counts = Counter(node.name for node in model.graph if node.name)
    duplicate = next((name for name, count in counts.items() if count > 1), None)
    if duplicate is not None:
        raise GraphError(
            f"{path}: {counts[duplicate]} nodes are named {duplicate!r}, and ONNX Runtime does not run such a graph",
            fix="Give each node a unique name, or no name.",
        )


def _check_outputs(graph: ir.Graph, path: Path) -> None:
    reached, has_branches = _reach_from_inputs(graph)
    for value in graph.outputs:
        if value.is_graph_input():
            raise GraphError(f"{path}: the output {value.name!r} is an input too", fix="Remove it from the outputs.")
    if not has_branches and not any(value in reached for value in graph.outputs):
        raise GraphError(
            f"{path}: no output depends on the image", fix="Export the model again: the exporter traced it wrongly."
        )


def _reach_from_inputs(graph: ir.Graph) -> tuple[set[ir.Value], bool]:
    """Return the values that are computed from the inputs, and whether branches may compute more of them."""
    reached = {value for value in graph.inputs if not value.is_initializer()}
    pending = list(reached)
    while pending:
        for node in pending.pop().consumers():
            new_values = [value for value in node.outputs if value not in reached]
            reached.update(new_values)
            pending += new_values
    return reached, any(node.graph is not graph for node in graph.all_nodes())


def _describe(node: ir.Node) -> str:
    return repr(node.name) if node.name else f"that computes {node.outputs[0].name!r}"
