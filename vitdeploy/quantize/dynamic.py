"""Dynamic INT8 for ONNX Runtime: weights in INT8 on disk, activation ranges taken from each image as it comes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.environment import host
from vitdeploy.graph.dialect import CONTRIB
from vitdeploy.graph.model import Graph, array, constant, only_consumer
from vitdeploy.graph.structure import Structure
from vitdeploy.quantize import Quantized
from vitdeploy.quantize.placement import place
from vitdeploy.recipe import PrecisionSpec
from vitdeploy.session import Array

_FULL_RANGE = 127
_HALF_RANGE = 64
"""255 · 64 · 2 = 32,640 fits int16: AVX2 adds pairs of u8 x s8 products there and saturates beyond 32,767."""


def quantize(graph: Graph, structure: Structure, precision: PrecisionSpec) -> Quantized:
    """Turn every placed linear into `DynamicQuantizeMatMul`, in place. Needs no calibration data.

        x ─ MatMul(W) ─ Add b   ─▶   x ─ DynamicQuantizeMatMul(W int8, scale per channel, b)

    Weights are symmetric, one scale for each output channel: scale = max|W| / 127.
    """
    placed, kept = place(structure, precision.keep)
    largest = _FULL_RANGE if host().int8_dot_product else _HALF_RANGE
    names = {name for linear in placed for name in linear.nodes}
    for node in [n for n in graph.nodes if n.name in names and n.op_type == "MatMul"]:
        _rewrite(graph, node, largest)
    graph.model.opset_imports[CONTRIB] = 1
    record = {
        "method": "dynamic",
        "weight_bits": "8" if largest == _FULL_RANGE else "7",
        "outlier_migration": "none: it needs calibration images",
        "quantized": str(len(placed)),
        **{f"float: {name}": rule for name, rule in kept.items()},
    }
    return Quantized(graph, record)


def symmetric_codes(weight: Array, largest: int) -> tuple[Array, Array]:
    """int8 codes and float32 scales of a (in, out) weight, one scale for each output channel."""
    scale = np.abs(weight).max(axis=0).astype(np.float32) / largest
    scale[scale == 0] = 1.0  # a dead channel: every code is 0, whatever the scale
    return np.clip(np.rint(weight / scale), -largest, largest).astype(np.int8), scale


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
