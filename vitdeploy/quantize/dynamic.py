"""Dynamic INT8 for ONNX Runtime: INT8 weights on disk, activation ranges computed anew for each image."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from vitdeploy.graph.dialect import CONTRIB
from vitdeploy.graph.model import Graph, array, bias_behind, operand
from vitdeploy.quantize.qdq import quantize_symmetric


def write_kernels(graph: Graph, names: Iterable[str], largest: int) -> None:
    """Replace the MatMuls called `names` by ONNX Runtime's dynamic kernels, in place.

        x ─ MatMul(W) ─ Add b   ─▶   x ─ DynamicQuantizeMatMul(W int8, scale per channel, b)

    No calibration data is needed. Weights are symmetric, with one scale for each output channel: max|W| / `largest`. A
    value that several of them read (q, k and v) is quantized once: one `DynamicQuantizeLinear`, and a
    `MatMulIntegerToFloat` for each.
    """
    products = set(names)
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in [n for n in graph.nodes if n.name in products and n.op_type == "MatMul"]:
        readers.setdefault(operand(node, 0), []).append(node)
    for source, nodes in readers.items():
        quantizer = _insert_quantizer(graph, source, nodes[0]) if len(nodes) > 1 else None
        for node in nodes:
            _replace_product(graph, node, largest, quantizer)
    graph.model.opset_imports[CONTRIB] = 1


def _insert_quantizer(graph: Graph, source: ir.Value, before: ir.Node) -> ir.Node:
    """Insert a `DynamicQuantizeLinear`, whose outputs are codes, scale and zero point."""
    node = ir.Node("", "DynamicQuantizeLinear", [source], num_outputs=3, name=f"{source.name}/quantize")
    types = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
    for value, label, dtype in zip(node.outputs, ("codes", "scale", "zero_point"), types, strict=True):
        value.name, value.type = f"{source.name}/{label}", ir.TensorType(dtype)
    graph.model.graph.insert_before(before, node)
    return node


def _replace_product(graph: Graph, node: ir.Node, largest: int, quantizer: ir.Node | None) -> None:
    codes, scale = quantize_symmetric(array(node.inputs[1]), largest)
    tape = ir.tape.Tape()
    weight = tape.initializer(ir.tensor(codes, name=f"{node.name}/weight_int8"))
    weight_scale = tape.initializer(ir.tensor(scale, name=f"{node.name}/weight_scale"))
    inputs: list[ir.Value | None]
    if quantizer is None:
        kernel, inputs = "DynamicQuantizeMatMul", [node.inputs[0], weight, weight_scale]
    else:
        kernel, (activation, activation_scale, zero) = "MatMulIntegerToFloat", quantizer.outputs
        inputs = [activation, weight, activation_scale, weight_scale, zero]
    old = [node]
    if (addition := bias_behind(node)) is not None:
        add, bias = addition
        old, inputs = [node, add], [*inputs, None, bias]
    result = tape.op(kernel, inputs, domain=CONTRIB, name=node.name)
    graph.replace(old, tape, old[-1].outputs[0], result)
