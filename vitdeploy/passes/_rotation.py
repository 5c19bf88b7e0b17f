"""Find the rotation of queries or keys by their positions, and read its angles off by running it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.errors import VitdeployError
from vitdeploy.graph.model import Graph, constant, dims, producer
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.widening import widen_floats
from vitdeploy.session import Array

_MOVING = frozenset({
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
})  # fmt: skip
_LINEAR = _MOVING | {"Add", "Mul", "Neg", "Sub"}
"""Operators of which a rotation consists, with constant factors and sums of computed values."""

_TOLERANCE = 1e-5
"""Of the largest number: the rotation and its products add the same two terms in float32."""


@dataclass(frozen=True)
class Rotation:
    """A stretch of a graph that turns pairs of channels by the angle of their token.

    Attributes:
        start: the value before it; its last axis are the channels of a head.
        end: the value behind it, of the same shape unless moves inside of the stretch change it.
    """

    start: ir.Value
    end: ir.Value


@dataclass(frozen=True)
class RotationTables:
    """end = start · cosines + start[partners] · sines.

    Attributes:
        partners: for each channel the other one of its pair, or itself.
        cosines: a table that broadcasts to the value, float32.
        sines: likewise, with the signs.
    """

    partners: Array
    cosines: Array
    sines: Array


def find_rotation(value: ir.Value) -> Rotation | None:
    """Return the rotation above a query or a key, or None if there is none between it and its linear."""
    nodes = _linear_nodes_above(value)
    turning = [number for number, node in enumerate(nodes) if _turns(node)]
    if not any(nodes[number].op_type in ("Neg", "Sub") for number in turning):
        return None
    cuts = _find_cuts(nodes, value)
    starts = [cut for number, cut in reversed(cuts) if number < turning[0]]
    ends = [cut for number, cut in cuts if number >= turning[-1]]
    nearest = [Rotation(start, end) for start in starts for end in ends]
    return next((r for r in nearest if dims(r.start) == dims(r.end)), nearest[0] if nearest else None)


def _linear_nodes_above(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that compute `value` by moves, sums and constant factors alone, in the graph's order."""
    nodes: set[ir.Node] = set()
    pending: list[ir.Value | None] = [value]
    while pending:
        node = producer(pending.pop())
        if node is not None and node not in nodes and _is_linear(node):
            nodes.add(node)
            pending += node.inputs
    graph = next((node.graph for node in nodes), None)
    return [node for node in graph or () if node in nodes]


def _is_linear(node: ir.Node) -> bool:
    if node.op_type not in _LINEAR or node.domain != "":
        return False
    constants = sum(constant(value) is not None for value in node.inputs if value is not None)
    if node.op_type == "Mul":
        return constants == 1
    return constants == 0 if node.op_type in ("Add", "Sub") else True


def _turns(node: ir.Node) -> bool:
    """Return whether a node is part of a turn: it changes signs, or multiplies by a table."""
    if node.op_type == "Mul":
        return any((tensor := constant(value)) is not None and tensor.size > 1 for value in node.inputs)
    return node.op_type in ("Neg", "Sub")


def _find_cuts(nodes: list[ir.Node], end: ir.Value) -> list[tuple[int, ir.Value]]:
    """Return the values that everything passes through on its way to `end`, each with the place of its node.

    The value before all nodes has the place -1.
    """
    computed = {value for node in nodes for value in node.outputs}
    reads = [{v for v in node.inputs if v is not None and constant(v) is None} for node in nodes]
    unread = Counter(value for values in reads for value in values)
    unread[end] += 1
    live = {value for values in reads for value in values if value not in computed}
    cuts = [(-1, next(iter(live)))] if len(live) == 1 else []
    for number, (node, values) in enumerate(zip(nodes, reads, strict=True)):
        for value in values:
            unread[value] -= 1
            if not unread[value]:
                live.discard(value)
        live.update(value for value in node.outputs if unread[value])
        if len(live) == 1 and next(iter(live)) in node.outputs:
            cuts.append((number, next(iter(live))))
    return cuts


def measure_rotation(graph: Graph, rotation: Rotation) -> RotationTables | str:
    """Run a rotation on each unit vector, or return why it cannot be written as products."""
    start, end = rotation.start, rotation.end
    shape = dims(start)
    if shape is None or len(shape) < 3 or None in shape[1:]:
        return "its number of tokens varies"
    sizes = tuple(size or 1 for size in shape)
    if (dims(end) or ())[1:] != shape[1:] or start.dtype != end.dtype:
        return "the rotation also moves its tokens or heads"
    with scratch_folder("rotation") as folder:
        path = folder / "rotation.onnx"
        try:
            part = ir.convenience.extract(graph.model.graph, [start], [end])
            part.opset_imports.update(graph.model.opset_imports)
            model = ir.external_data.load_to_model(ir.Model(part, ir_version=graph.model.ir_version))
            model = ir.from_proto(ir.to_proto(model))  # the parts of a clone share their types with the graph
            widen_floats(model)
            Graph(model).save(path)
            with OnnxSession(path, lean=True, threads=1) as session:
                return _measure(session, str(start.name), str(end.name), sizes)
        except (ValueError, VitdeployError) as error:
            return f"the rotation cannot be run apart: {str(error)[:200]}"


def _measure(session: OnnxSession, feed: str, result: str, sizes: tuple[int, ...]) -> RotationTables | str:
    channels = sizes[-1]
    partners = np.arange(channels)
    cosines, sines = np.zeros(sizes, np.float32), np.zeros(sizes, np.float32)
    for channel in range(channels):
        unit = np.zeros(sizes, np.float32)
        unit[..., channel] = 1
        turned = session.run({feed: unit})[result]
        cosines[..., channel] = turned[..., channel]
        for other in np.flatnonzero(np.any(turned != 0, axis=tuple(range(turned.ndim - 1)))):
            if other == channel:
                continue
            if partners[other] != other:
                return "a channel is the sum of more than two"
            partners[other] = channel
            sines[..., other] = turned[..., other]
    if (partners == np.arange(channels)).all():
        return "no channel is turned"
    x = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    expected = session.run({feed: x})[result]
    if np.abs(x * cosines + x[..., partners] * sines - expected).max() > _TOLERANCE * np.abs(expected).max():
        return "its tokens are not turned each by itself"
    return RotationTables(partners, _shrink(cosines), _shrink(sines))


def _shrink(table: Array) -> Array:
    """Return a table without the axes along which it does not change."""
    for axis in range(table.ndim - 1):
        first = table.take([0], axis)
        if (table == first).all():
            table = first
    while table.ndim > 2 and table.shape[0] == 1:
        table = table[0]
    return table
