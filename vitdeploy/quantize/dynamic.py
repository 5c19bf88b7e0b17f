"""Dynamic INT8 for ONNX Runtime: weights in INT8 on disk, activation ranges taken from each image as it comes."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from vitdeploy.graph.dialect import CONTRIB
from vitdeploy.graph.model import Graph, array, constant, only_consumer
from vitdeploy.quantize.qdq import symmetric_codes


def write(graph: Graph, names: Iterable[str], largest: int) -> None:
    """Turn the MatMuls called `names` into `DynamicQuantizeMatMul`, in place. Needs no calibration data.

        x ─ MatMul(W) ─ Add b   ─▶   x ─ DynamicQuantizeMatMul(W int8, scale per channel, b)

    Weights are symmetric, one scale for each output channel: scale = max|W| / `largest`.
    """
    wanted = set(names)
    for node in [n for n in graph.nodes if n.name in wanted and n.op_type == "MatMul"]:
        _rewrite(graph, node, largest)
    graph.model.opset_imports[CONTRIB] = 1


def _rewrite(graph: Graph, node: ir.Node, largest: int) -> None:
    codes, scale = symmetric_codes(array(node.inputs[1]), largest)
    tape = ir.tape.Tape()
    inputs: list[ir.Value | None] = [
        node.inputs[0],
        tape.initializer(ir.tensor(codes, name=f"{node.name}/weight_int8")),
        tape.initializer(ir.tensor(scale, name=f"{node.name}/weight_scale")),
    ]
    output, old = node.outputs[0], [node]
    add = only_consumer(output, "Add")
    if add is not None:
        bias = next((v for v in add.inputs if v is not output), None)
        bias_tensor = constant(bias)
        if bias_tensor is not None and len(bias_tensor.shape) == 1:
            inputs += [None, bias]
            output, old = add.outputs[0], [node, add]
    result = tape.op("DynamicQuantizeMatMul", inputs, domain=CONTRIB, name=node.name)
    graph.replace(old, tape, output, result)
