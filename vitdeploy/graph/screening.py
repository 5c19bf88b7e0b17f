"""What an ONNX file that somebody else made must be before anything is claimed about it.

Each check names the node or tensor. What passes here can still fail in ONNX Runtime, which runs it next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from vitdeploy.errors import GraphError
from vitdeploy.graph.dialect import CONTRIB
from vitdeploy.graph.model import constant, dims
from vitdeploy.session import Array

_STANDARD = ("", "ai.onnx")
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
_QUANTIZED = {
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    "QuantizeLinear",
}  # fmt: skip
_OTHER_FLOATS = {ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.FLOAT16}
_WEIGHTED = ("Conv", "Gemm", "MatMul")


def screen(model: ir.Model, path: Path) -> None:
    """Refuse a graph that is inconsistent, or about which claims would be false.

    Raises:
        GraphError: with the first thing that is wrong.
    """
    _versions(model, path)
    for node in model.graph.all_nodes():
        _operator(node, model, path)
        _numbers(node, path)
        _operands(node, path)
    _names(model, path)
    _outputs(model.graph, path)


def check_declared(model: ir.Model, outputs: Mapping[str, Array], path: Path) -> None:
    """Refuse outputs that are declared in another shape than they come in: runtimes only warn, engines go by it.

    Args:
        model: the graph in `path`.
        outputs: what it really computes, by name.
        path: for the message.

    Raises:
        GraphError: with the first output that is declared wrongly.
    """
    for value in model.graph.outputs:
        declared, found = dims(value), list(outputs[str(value.name)].shape)
        if declared and not (len(declared) == len(found) and all(map(_same, declared, found))):
            raise GraphError(
                f"{path} declares its output {value.name}{value.shape}, and computes {found}",
                fix="Export it again, or declare the shape that it has.",
            )


def _same(declared: int | None, found: int) -> bool:
    return declared in (None, found)


def _versions(model: ir.Model, path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    opset, version = model.opset_imports[""], model.ir_version
    if opset > newest or version > onnx.IR_VERSION:
        raise GraphError(
            f"{path} is opset {opset} in ONNX IR {version}, onnx {onnx.__version__} knows up to opset {newest} in IR "
            f"{onnx.IR_VERSION}",
            fix="Export it with opset 18 or later, but no newer than that; or update onnx and onnxruntime.",
        )


def _operator(node: ir.Node, model: ir.Model, path: Path) -> None:
    """An operator that every target can be expected to know, and that gives the same numbers each time."""
    told = f"{path}: node {_called(node)}"
    if node.op_identifier() in model.functions:
        return
    if node.domain == CONTRIB:
        raise GraphError(
            f"{told} is {node.op_type} of {CONTRIB}, which only ONNX Runtime has, and which hides what it was made of",
            fix="Give the model as it was exported, before ONNX Runtime optimised it.",
        )
    if node.domain not in _STANDARD:
        raise GraphError(
            f"{told} is {node.op_type} of {node.domain}, which is not an operator of ONNX",
            fix="Export the model with standard operators, or write that one as an ONNX function.",
        )
    if not onnx.defs.has(node.op_type):
        raise GraphError(f"{told} is {node.op_type}, which ONNX does not have", fix="Export the model again.")
    if node.op_type in _RANDOM or _trains(node):
        raise GraphError(
            f"{told} ({node.op_type}) draws random numbers: one image would give many answers",
            fix="Export the model in eval mode.",
        )


def _trains(node: ir.Node) -> bool:
    """Dropout that drops."""
    flag = constant(node.inputs[2]) if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    return flag is not None and bool(flag.numpy().any())


def _numbers(node: ir.Node, path: Path) -> None:
    """Float32, because the given graph is the FP32 reference that everything is compared with."""
    if node.op_type in _QUANTIZED:
        raise GraphError(
            f"{path} is quantized already (node {_called(node)} is {node.op_type}): there is no FP32 to compare with",
            fix="Give the float32 model; it is quantized here.",
        )
    dtype = node.inputs[1].dtype if node.op_type in _WEIGHTED and len(node.inputs) > 1 and node.inputs[1] else None
    if dtype is not None and dtype in _OTHER_FLOATS:
        raise GraphError(
            f"{path}: node {_called(node)} ({node.op_type}) computes in {dtype.name.lower()}: there is no FP32 to "
            "compare with",
            fix="Give the float32 model; its precision is lowered here.",
        )


def _operands(node: ir.Node, path: Path) -> None:
    for value in node.inputs:
        if value is not None and not (value.producer() or value.is_graph_input() or value.is_initializer()):
            raise GraphError(
                f"{path}: node {_called(node)} ({node.op_type}) reads {value.name!r}, which nothing makes",
                fix="Save the model again; sparse initializers have to be made dense.",
            )


def _names(model: ir.Model, path: Path) -> None:
    counts = Counter(node.name for node in model.graph if node.name)
    double = next((name for name, count in counts.items() if count > 1), None)
    if double is not None:
        raise GraphError(
            f"{path}: {counts[double]} nodes are named {double!r}, and ONNX Runtime runs no such graph",
            fix="Give each node its own name, or none.",
        )


def _outputs(graph: ir.Graph, path: Path) -> None:
    reached, branches = _reached(graph)
    for value in graph.outputs:
        if value.is_graph_input():
            raise GraphError(f"{path}: its output {value.name!r} is its input", fix="Remove it from the outputs.")
    if not branches and not any(value in reached for value in graph.outputs):
        raise GraphError(
            f"{path}: no output depends on the image", fix="Export the model again: it was traced wrongly."
        )


def _reached(graph: ir.Graph) -> tuple[set[ir.Value], bool]:
    """What is computed from the inputs, and whether branches may hide some of it."""
    reached = {value for value in graph.inputs if not value.is_initializer()}
    pending = list(reached)
    while pending:
        for node in pending.pop().consumers():
            fresh = [value for value in node.outputs if value not in reached]
            reached.update(fresh)
            pending += fresh
    return reached, any(node.graph is not graph for node in graph.all_nodes())


def _called(node: ir.Node) -> str:
    return repr(node.name) if node.name else f"that makes {node.outputs[0].name!r}"
