"""Lower each Col2Im, which sums up overlapping patches, to a transposed convolution."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, dims, operand
from vitdeploy.passes import Pass, PassResult

_PLANE = 2
"""Spatial axes. PyTorch folds images only, and TensorRT has no transposed convolution of one axis."""


class LowerCol2im(Pass):
    """Replace nn.Fold by a transposed convolution of each channel, whose weight moves entries to their places.

        x (batch, channels · kh · kw, patches) ─ Col2Im
     ─▶ x ─ Reshape (batch, channels · kh · kw, rows, columns) ─ ConvTranspose(identity) ─ [Pad]

    Each channel is a group with kh · kw inputs and one output, and the weight of entry (i, j) is 1 at (i, j) alone, so
    the sums are Col2Im's. Zeros are padded where the last patch ends before the image does. For targets without the
    operator. Left alone and refused: sizes that vary, and other than two spatial axes.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Lower every Col2Im."""
        refused, fired = {}, 0
        for node in [n for n in graph.nodes if n.op_type == "Col2Im" and n.domain == ""]:
            if reason := _unsupported_reason(node):
                refused[node.name or ""] = reason
            else:
                _lower(graph, node)
                fired += 1
        return PassResult(fired, refused)


def _unsupported_reason(node: ir.Node) -> str | None:
    shape, sizes = dims(operand(node, 0)), [constant(operand(node, index)) for index in (1, 2)]
    if None in sizes or shape is None or None in shape[1:]:
        return "the size of its image varies"
    if any(tensor is not None and tensor.size != _PLANE for tensor in sizes):
        return "its image has other than two axes"
    return None


def _lower(graph: Graph, node: ir.Node) -> None:
    x, name, tape = operand(node, 0), node.name, ir.tape.Tape()
    image, block = ([int(n) for n in array(operand(node, index))] for index in (1, 2))
    strides, dilations = (list(node.attributes.get_ints(key, [1, 1])) for key in ("strides", "dilations"))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * _PLANE))
    spans = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, block, strict=True)]
    sides = range(_PLANE)
    grid = [(image[i] + pads[i] + pads[i + _PLANE] - spans[i]) // strides[i] + 1 for i in sides]
    # Behind the last patch: what the convolution crops, or, below 0, the zeros that it lacks.
    ends = [(grid[i] - 1) * strides[i] + spans[i] - pads[i] - image[i] for i in sides]
    entries = math.prod(block)
    columns = int((dims(x) or ())[1] or 0)
    dtype = np.dtype(np.float32) if x.dtype is None else x.dtype.numpy()
    weight = np.tile(np.eye(entries, dtype=dtype).reshape(entries, 1, *block), (columns // entries, 1, 1, 1))

    def ints(label: str, numbers: list[int]) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(numbers, np.int64), name=f"{name}/{label}"))

    grids = tape.op("Reshape", [x, ints("grid", [0, columns, *grid])], name=f"{name}/Reshape")
    result = tape.op(
        "ConvTranspose",
        [grids, tape.initializer(ir.tensor(weight, name=f"{name}/identity"))],
        {
            "group": columns // entries, "strides": strides, "dilations": dilations,
            "pads": [*pads[:_PLANE], *(max(end, 0) for end in ends)],
        },
        name=f"{name}/ConvTranspose",
    )  # fmt: skip
    if min(ends) < 0:
        zeros = ints("pads", [0] * (2 + _PLANE) + [0, 0] + [max(-end, 0) for end in ends])
        result = tape.op("Pad", [result, zeros], name=f"{name}/Pad")
    graph.replace([node], tape, node.outputs[0], result)
