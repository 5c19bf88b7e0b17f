"""FP16: weights and activations in half precision, float32 at the graph's edges."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import QuantizeError
from vitdeploy.graph.model import Graph
from vitdeploy.quantize import Quantized

_LARGEST = float(np.finfo(np.float16).max)
_MASKED = -1e9
"""Down from here stands what models write for minus infinity in a mask (-1e9, -9e15, float32's lowest number), and no
weight; float16's lowest number serves as well."""

_FLOAT32_INPUTS = {"Resize": {1, 2}, "Upsample": {1}, "QuantizeLinear": {1}, "DequantizeLinear": {1}}
"""Inputs that an operator defines as float32 (region, scales), whatever its data is."""


def convert(graph: Graph) -> Quantized:
    """Convert every float32 tensor inside to float16, in place; inputs and outputs stay float32 through casts.

    A strongly typed TensorRT network takes its precision from these types. LayerNormalization stays one operator, whose
    statistics backends compute in float32 (ONNX's stash_type); written out as primitives it would overflow.

    Raises:
        QuantizeError: a weight is beyond float16's range of ±65,504.
    """
    converted = _convert_constants(graph)
    for node in graph.model.graph.all_nodes():
        target = node.attributes.get("to")
        if node.op_type == "Cast" and target is not None and target.as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.dtype = ir.DataType.FLOAT16
    _cast_edges(graph)
    return Quantized(graph, {"method": "float16 throughout, float32 input and output", "converted": str(converted)})


def _convert_constants(graph: Graph) -> int:
    converted = 0
    for name, value in list(graph.model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        if all(use.idx in _FLOAT32_INPUTS.get(use.node.op_type, ()) for use in value.uses()):
            continue
        value.const_value = _half(tensor, name)
        value.dtype = ir.DataType.FLOAT16
        converted += 1
    for node in graph.model.graph.all_nodes():
        attribute = node.attributes.get("value")
        if attribute is None or attribute.type != ir.AttributeType.TENSOR:
            continue
        tensor = attribute.as_tensor()
        if tensor.dtype == ir.DataType.FLOAT:
            node.attributes["value"] = ir.AttrTensor("value", _half(tensor, node.name or "a constant"))
            converted += 1
    return converted


def _half(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    array = tensor.numpy()
    array = np.where(array <= _MASKED, -_LARGEST, array)
    finite = array[np.isfinite(array)]
    if finite.size and np.abs(finite).max() > _LARGEST:
        raise QuantizeError(
            f"{name} reaches {np.abs(finite).max():.3g}, float16 ends at {_LARGEST:.0f}", fix="Use --precision fp32."
        )
    return ir.tensor(array.astype(np.float16), name=tensor.name)


def _cast_edges(graph: Graph) -> None:
    main = graph.model.graph
    for value in main.inputs:
        if value.dtype != ir.DataType.FLOAT:
            continue
        uses = list(value.uses())
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16}, name=f"{value.name}/to_half")
        cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.FLOAT16, value.shape
        cast.outputs[0].name = f"{value.name}/half"
        main.insert_before(main[0], cast)
        for use in uses:
            use.node.replace_input_with(use.idx, cast.outputs[0])
    for index, value in enumerate(main.outputs):
        if value.dtype != ir.DataType.FLOAT16:
            continue
        name = value.name
        value.name = f"{name}/half"
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}/to_float")
        cast.outputs[0].dtype, cast.outputs[0].shape, cast.outputs[0].name = ir.DataType.FLOAT, value.shape, name
        main.append(cast)
        main.outputs[index] = cast.outputs[0]
