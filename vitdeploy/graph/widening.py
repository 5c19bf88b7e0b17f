"""Widen float16 and bfloat16 numbers in a graph to float32."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_TYPE_ATTRIBUTES = ("dtype", "output_datatype", "output_dtype", "softmax_precision", "stash_type", "to")
"""Attributes of ONNX operators that hold the number of a data type."""
_GELU = (math.sqrt(2), math.sqrt(1 / 2), math.sqrt(2 / math.pi), 0.044715)
"""The constants of GELU and of its approximation with tanh (https://arxiv.org/abs/1606.08415)."""


def widen_floats(model: ir.Model) -> ir.DataType | None:
    """Make every float16 and bfloat16 in a graph a float32, in place: weights, constants, casts, inputs and outputs.

    All graphs inside of nodes and all functions are widened too. Numbers keep their value: a mask of -65504, the lowest
    float16, stays -65504. Only the rounded constants of a written-out GELU become exact, or each layer would differ
    from GELU by 0.01 %. A Cast between float32 and float16 becomes an Identity.

    Args:
        model: the graph. Its external data is read.

    Returns:
        The type that was found, float16 first; None if there was neither, and the graph is unchanged.
    """
    types: set[ir.DataType] = set()
    graphs: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for graph in graphs:
        for value in _values(graph):
            if value.dtype in _NARROW:
                types.add(value.dtype)
                value.dtype = ir.DataType.FLOAT
            if value.const_value is not None and value.const_value.dtype in _NARROW:
                types.add(value.const_value.dtype)
                value.const_value = _widen_tensor(value.const_value)
        for node in graph:
            for name, attribute in node.attributes.items():
                widened = None if attribute.is_ref() else _widen_attribute(attribute, types)
                if widened is not None:
                    node.attributes[name] = widened
    if types:
        _drop_casts(model)
    return next((kind for kind in _NARROW if kind in types), None)


def _drop_casts(model: ir.Model) -> None:
    """Make each Cast from float32 to float32 an Identity.

    ONNX Runtime 1.32 removes such a Cast even if a branch reads its output, and then fails.
    """
    ShapeInferencePass()(model)
    for node in model.graph.all_nodes():
        source = node.inputs[0] if node.op_type == "Cast" and node.domain == "" else None
        to = node.attributes.get_int("to", 0)
        if source is not None and source.dtype == ir.DataType.FLOAT and to == int(ir.DataType.FLOAT):
            node.op_type = "Identity"
            node.attributes.clear()


def _values(graph: ir.Graph | ir.Function) -> Iterator[ir.Value]:
    yield from graph.inputs
    if isinstance(graph, ir.Graph):
        yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _widen_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    numbers = np.asarray(tensor.numpy())
    wide = numbers.astype(np.float32)
    if numbers.size == 1:
        exact = (constant for constant in _GELU if numbers.dtype.type(constant) == numbers.reshape(-1)[0])
        wide = np.full_like(wide, next(exact, wide.reshape(-1)[0]))
    return ir.tensor(wide, name=tensor.name)


def _widen_attribute(attribute: ir.Attr, found: set[ir.DataType]) -> ir.Attr | None:
    """Return the attribute in float32, and add the type that it had to `found`; None if it has no narrow float."""
    if attribute.type == ir.AttributeType.INT and attribute.name in _TYPE_ATTRIBUTES:
        kinds = [kind for kind in _NARROW if kind == attribute.as_int()]
        found.update(kinds)
        return ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT)) if kinds else None
    if attribute.type == ir.AttributeType.TENSOR:
        tensors = [attribute.as_tensor()]
    elif attribute.type == ir.AttributeType.TENSORS:
        tensors = list(attribute.as_tensors())
    else:
        return None
    kinds = [tensor.dtype for tensor in tensors if tensor.dtype in _NARROW]
    if not kinds:
        return None
    found.update(kinds)
    widened = [_widen_tensor(tensor) if tensor.dtype in _NARROW else tensor for tensor in tensors]
    if attribute.type == ir.AttributeType.TENSOR:
        return ir.AttrTensor(attribute.name, widened[0])
    return ir.AttrTensors(attribute.name, widened)
