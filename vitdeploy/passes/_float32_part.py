"""Compute a part of a half-precision graph in float32, with its weights as they are stored."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.casts import FLOAT32_INPUTS, HALF_TYPES, insert_cast
from vitdeploy.graph.model import Graph, constant, operand

_PAIRS = ("DequantizeLinear", "QuantizeLinear")
"""They stay in their type, so that they round as before."""

_SMALL_BYTES = 1 << 9
"""A smaller constant gets a float32 copy: some operators take their bounds only from a constant. That copy has less
than 1 kB, from which on constants are stored in the file of weights that variants share."""


def compute_in_float32(graph: Graph, nodes: Iterable[ir.Node]) -> int:
    """Let `nodes` compute in float32, with casts at the borders of that part. Return how many nodes changed.

    Half-precision weights keep their bytes, and a Cast behind each widens them: compilers compute that once. Q/DQ pairs
    stay as they are, so quantized products multiply the same rounded numbers, in float32.
    """
    nodes = dict.fromkeys(nodes)
    members = {node for node in nodes if _can_widen(node, nodes)}
    part = [node for node in nodes if node in members]
    narrow: dict[ir.Value, ir.DataType] = {}
    for node in part:
        _widen_attributes(node)
        for value in node.outputs:
            if value.dtype in HALF_TYPES:
                narrow[value] = value.dtype
                value.type = ir.TensorType(ir.DataType.FLOAT)
    wide: dict[ir.Value, ir.Value] = {}
    for node in part:
        for index in _half_inputs(node):
            value = operand(node, index)
            if value not in wide:
                wide[value] = _widen(graph, value)
            node.replace_input_with(index, wide[value])
    for value, dtype in narrow.items():
        _narrow_readers(graph, value, dtype, members)
    for cast in {*part, *(use.node for value in narrow for use in value.uses())}:
        _drop_cast(cast)
    return len(part)


def _can_widen(node: ir.Node, nodes: Collection[ir.Node]) -> bool:
    """Return whether a node has halves, gives none as an output of the graph, and is no border of the part."""
    outputs = [value for value in node.outputs if value.dtype in HALF_TYPES]
    if node.op_type in _PAIRS or any(value.is_graph_output() for value in outputs):
        return False
    if node.op_type == "Cast":
        readers = {use.node for value in outputs for use in value.uses()}
        return any(reader in nodes and reader.op_type not in _PAIRS for reader in readers)
    return bool(outputs) or any(True for _ in _half_inputs(node))


def _half_inputs(node: ir.Node) -> Iterator[int]:
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype in HALF_TYPES and index not in FLOAT32_INPUTS.get(node.op_type, ()):
            yield index


def _widen(graph: Graph, value: ir.Value) -> ir.Value:
    """Return `value` in float32: a copy of a small constant, else a Cast."""
    tensor = constant(value)
    if tensor is not None and tensor.nbytes < _SMALL_BYTES:
        return graph.initializer(np.asarray(tensor.numpy()).astype(np.float32), f"{value.name}/float32")
    return insert_cast(graph, value, ir.DataType.FLOAT)


def _narrow_readers(graph: Graph, value: ir.Value, dtype: ir.DataType, members: Collection[ir.Node]) -> None:
    """Give the readers outside of the part the type that they had. A Cast takes any."""
    readers = [use for use in value.uses() if use.node not in members and use.node.op_type != "Cast"]
    if readers:
        narrowed = insert_cast(graph, value, dtype)
        for use in readers:
            use.node.replace_input_with(use.idx, narrowed)


def _widen_attributes(node: ir.Node) -> None:
    """Change the attributes that declare a half type: the target of a Cast, the number of a ConstantOfShape."""
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) in map(int, HALF_TYPES):
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    attribute = node.attributes.get("value")
    if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.dtype in HALF_TYPES:
            wide = ir.tensor(np.asarray(tensor.numpy()).astype(np.float32), name=tensor.name)
            node.attributes["value"] = ir.AttrTensor("value", wide)


def _drop_cast(node: ir.Node) -> None:
    """Let the readers of a Cast from float32 to float32 read its input; one that is an output becomes an Identity."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    if source is None or source.dtype != ir.DataType.FLOAT or node.outputs[0].dtype != ir.DataType.FLOAT:
        return
    if node.outputs[0].is_graph_output():
        node.op_type = "Identity"
        node.attributes.clear()
    else:
        ir.convenience.replace_all_uses_with(node.outputs[0], source)
