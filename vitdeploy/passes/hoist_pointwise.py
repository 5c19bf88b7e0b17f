"""Compute 1×1 convolutions before their input is enlarged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.graph.channel_moves import is_transpose, to_first, to_last
from vitdeploy.graph.model import Graph, constant, dims, only_consumer, operand, producer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._linear import LinearMatch, match_linear
from vitdeploy.session import Array

_RANK = 4
_MODES = ("nearest", "linear", "cubic")
"""Ways to interpolate whose weights add up to 1 for every pixel, without those that fill in a constant."""


class HoistPointwise(Pass):
    """Compute a 1×1 convolution before the Resize that enlarges its input, and joined channels each on their own.

        a ─ Resize ┐                                 a ─ Conv(W₁, b) ─ Resize ┐
                   Concat ─ Conv(W, b)      ─▶                                Add
        c ─────────┘                                 c ─ Conv(W₂) ────────────┘

    Interpolation takes the same mean of pixels in every channel, and a 1×1 convolution the same sum of channels in
    every pixel, so they may change places; the bias stays the bias because the weights of the mean add up to 1. Heads
    for dense tasks compute a convolution on large maps that were small before: in SegFormer's head, which enlarges and
    joins four maps, that is half of the whole model; so do the fusion stages of a DPT.

    A convolution is the linear between two moves that `RaisePointwise` writes. Left alone: one that would give the
    Resize more channels than it has, because the Resize would take longer; a Resize that something else reads too,
    that fills in a constant, or whose sizes vary.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Move every such convolution."""
        fired = 0
        for node in [n for n in graph.nodes if n.op_type == "MatMul"]:
            match = _match(node)
            if match is not None:
                _rewrite(graph, match)
                fired += 1
        if fired:  # what enlarged the input before would be another reader of it
            RemoveUnusedNodesPass()(graph.model)
        return PassResult(fired)


@dataclass(frozen=True)
class _Part:
    """Some of the channels that the convolution reads.

    Attributes:
        source: the map to compute the convolution on.
        resize: the node that enlarges it; None if it has the size of the output.
        channels: their number.
        area: the pixels of `source` for each pixel of the output.
    """

    source: ir.Value
    resize: ir.Node | None
    channels: int
    area: float


@dataclass(frozen=True)
class _Match:
    """A convolution, the move behind it, and the parts of its input."""

    linear: LinearMatch
    after: ir.Node
    parts: list[_Part]


def _match(product: ir.Node) -> _Match | None:
    linear = match_linear(product)
    if linear is None or linear.axis != _RANK - 1:
        return None
    before = producer(operand(product, 0), "Transpose")
    after = only_consumer(linear.output, "Transpose")
    if before is None or after is None or only_consumer(before.outputs[0]) is None:
        return None
    if not is_transpose(before, to_last(_RANK)) or not is_transpose(after, to_first(_RANK)):
        return None
    parts = [*_split(operand(before, 0))]
    resized = [part for part in parts if part.resize is not None]
    if not resized or sum(part.channels for part in parts) != linear.weight.shape[0]:
        return None
    if linear.channels * len(resized) > sum(part.channels for part in resized):
        return None
    return _Match(linear, after, parts)


def _split(joined: ir.Value) -> Iterator[_Part]:
    """Yield the parts of the convolution's input; none if a number of channels is not known."""
    concat = producer(joined, "Concat") if only_consumer(joined) is not None else None
    is_split = concat is not None and concat.attributes.get_int("axis", 0) in (1, 1 - _RANK)
    values = [v for v in concat.inputs if v is not None] if concat is not None and is_split else [joined]
    for value in values:
        shape = dims(value)
        if shape is None or len(shape) != _RANK or shape[1] is None:
            return
        yield _match_resize(value, shape[1]) or _Part(value, None, shape[1], 1.0)


def _match_resize(value: ir.Value, channels: int) -> _Part | None:
    """Return the part before the Resize of `value`; None if no convolution can go there, or nothing is gained."""
    node = producer(value, "Resize")
    if node is None or node.domain != "" or only_consumer(value) is None:
        return None
    attributes = node.attributes
    mode = attributes.get_string("mode", "nearest")
    coordinates = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    source, given, enlarged = operand(node, 0), dims(node.inputs[0]), dims(value)
    if mode not in _MODES or coordinates == "tf_crop_and_resize" or "axes" in attributes:
        return None
    pixels = [math.prod(size or 0 for size in (shape or ())[2:]) for shape in (given, enlarged)]
    if given is None or enlarged is None or not all(pixels) or given[1] != channels or given[:2] != enlarged[:2]:
        return None
    scales = _scales(node)
    factors = None if scales is None else constant(scales)
    if scales is not None and (factors is None or factors.size != _RANK or set(factors.numpy()[:2]) != {1.0}):
        return None
    area = pixels[0] / pixels[1]
    if given[2:] == enlarged[2:] and (factors is None or set(factors.numpy()) == {1.0}):
        return _Part(source, None, channels, 1.0)  # it changes nothing
    if area >= 1 or (scales is None and enlarged[0] is None):
        return None
    return _Part(source, node, channels, area)


def _scales(resize: ir.Node) -> ir.Value | None:
    """Return the factors by which it enlarges; None if it is given the sizes."""
    value = resize.inputs[2] if len(resize.inputs) > 2 else None
    tensor = constant(value)
    return None if tensor is not None and tensor.size == 0 else value


def _rewrite(graph: Graph, match: _Match) -> None:
    """Write a convolution for each part, and their sum."""
    linear, tape = match.linear, ir.tape.Tape()
    smallest = min(match.parts, key=lambda part: part.area)
    ends = np.cumsum([part.channels for part in match.parts])
    total: ir.Value | None = None
    for number, (part, end) in enumerate(zip(match.parts, ends, strict=True)):
        name = f"{linear.product.name}.{number}" if len(match.parts) > 1 else str(linear.product.name)
        bias = linear.bias if part is smallest else None
        result = _convolve(tape, part, linear.weight[end - part.channels : end], bias, name)
        if part.resize is not None:
            result = _enlarge(tape, part.resize, result, linear.channels)
        if total is None:
            total = result
        else:
            total = tape.op("Add", [total, result], name=f"{linear.product.name}/sum")
            total.shape, total.type = result.shape, result.type
    assert total is not None
    graph.replace([*linear.nodes, match.after], tape, match.after.outputs[0], total)


def _convolve(tape: ir.tape.Tape, part: _Part, weight: Array, bias: Array | None, name: str) -> ir.Value:
    """Write the linear over the channels of a part, between two moves. Its bias is added once, in one part."""
    shape, dtype = dims(part.source) or (), part.source.type
    moved = (shape[0], *shape[2:])

    def put(op_type: str, inputs: list[ir.Value], sizes: tuple[int | None, ...], label: str, **perm: Any) -> ir.Value:
        value = tape.op(op_type, inputs, perm, name=label)
        value.shape, value.type = ir.Shape(sizes), dtype
        return value

    matrix = tape.initializer(ir.tensor(np.ascontiguousarray(weight), name=f"{name}/weight"))
    value = put("Transpose", [part.source], (*moved, shape[1]), f"{name}/channels_last", perm=to_last(_RANK))
    value = put("MatMul", [value, matrix], (*moved, weight.shape[1]), name)
    if bias is not None:
        vector = tape.initializer(ir.tensor(bias.astype(weight.dtype), name=f"{name}/bias"))
        value = put("Add", [value, vector], (*moved, weight.shape[1]), f"{name}/Add")
    first = (shape[0], weight.shape[1], *shape[2:])
    return put("Transpose", [value], first, f"{name}/channels_first", perm=to_first(_RANK))


def _enlarge(tape: ir.tape.Tape, resize: ir.Node, value: ir.Value, channels: int) -> ir.Value:
    """Write the Resize behind the convolution."""
    enlarged = dims(resize.outputs[0]) or ()
    sizes = (enlarged[0], channels, *enlarged[2:])
    attributes = {key: a.value for key, a in resize.attributes.items() if a.value is not None}
    scales = _scales(resize)
    if scales is not None:
        inputs = [value, None, scales]
    else:
        numbers = np.array(sizes, np.int64)
        inputs = [value, None, None, tape.initializer(ir.tensor(numbers, name=f"{resize.name}/sizes"))]
    result = tape.op("Resize", inputs, attributes, name=resize.name)
    result.shape, result.type = ir.Shape(sizes), value.type
    return result
