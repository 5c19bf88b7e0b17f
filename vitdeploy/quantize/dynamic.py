"""Dynamic INT8 for ONNX Runtime: weights in INT8 on disk, activation ranges taken from each image as it comes."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from vitdeploy.graph.dialect import CONTRIB
from vitdeploy.graph.model import Graph, array, bias_behind, operand
from vitdeploy.quantize.qdq import symmetric_codes


def write(graph: Graph, names: Iterable[str], largest: int) -> None:
    """Turn the MatMuls called `names` into ONNX Runtime's dynamic kernels, in place. Needs no calibration data.

        x ─ MatMul(W) ─ Add b   ─▶   x ─ DynamicQuantizeMatMul(W int8, scale per channel, b)

    Weights are symmetric, one scale for each output channel: scale = max|W| / `largest`. What several of them read (q,
    k and v) is quantized once for all: `DynamicQuantizeLinear` and a `MatMulIntegerToFloat` each.
    """
    wanted = set(names)
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in [n for n in graph.nodes if n.name in wanted and n.op_type == "MatMul"]:
        readers.setdefault(operand(node, 0), []).append(node)
    for source, nodes in readers.items():
        shared = _quantized_once(graph, source, nodes[0]) if len(nodes) > 1 else None
        for node in nodes:
            _rewrite(graph, node, largest, shared)
    graph.model.opset_imports[CONTRIB] = 1


def _quantized_once(graph: Graph, source: ir.Value, before: ir.Node) -> ir.Node:
    """`DynamicQuantizeLinear` of a value: its codes, scale and zero point."""
    node = ir.Node("", "DynamicQuantizeLinear", [source], num_outputs=3, name=f"{source.name}/quantize")
    types = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
    for value, what, dtype in zip(node.outputs, ("codes", "scale", "zero_point"), types, strict=True):
        value.name, value.type = f"{source.name}/{what}", ir.TensorType(dtype)
    graph.model.graph.insert_before(before, node)
    return node


def _rewrite(graph: Graph, node: ir.Node, largest: int, shared: ir.Node | None) -> None:
    codes, scale = symmetric_codes(array(node.inputs[1]), largest)
    tape = ir.tape.Tape()
    weight = tape.initializer(ir.tensor(codes, name=f"{node.name}/weight_int8"))
    weight_scale = tape.initializer(ir.tensor(scale, name=f"{node.name}/weight_scale"))
    inputs: list[ir.Value | None]
    if shared is None:
        kernel, inputs = "DynamicQuantizeMatMul", [node.inputs[0], weight, weight_scale]
    else:
        kernel, (activation, step, zero) = "MatMulIntegerToFloat", shared.outputs
        inputs = [activation, weight, step, weight_scale, zero]
    old = [node]
    if (found := bias_behind(node)) is not None:
        old, inputs = [node, found[0]], [*inputs, None, found[1]]
    result = tape.op(kernel, inputs, domain=CONTRIB, name=node.name)
    graph.replace(old, tape, old[-1].outputs[0], result)
