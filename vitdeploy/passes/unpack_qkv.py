"""Split a packed linear for query, key and value into three linears."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, operand, producer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention import attention_cores
from vitdeploy.passes._linear import LinearMatch, match_linear_ending_at
from vitdeploy.passes._trace_channels import MOVING, trace, traced_sizes
from vitdeploy.session import Array

_NAMES = ("q", "k", "v")
_MOST_NUMBERS = 1 << 28
"""The largest output of a linear for one image whose channels are traced: each of its numbers costs 8 bytes then."""


class UnpackQkv(Pass):
    """Give q, k and v a linear each, its columns in the order in which attention takes them.

        x ─ MatMul(W) ─ Add b ─ Reshape ─ Transpose ─ Split ─ q, k, v ─ Attention
     ─▶ x ─ MatMul(Wq) ─ Add bq ─ Reshape ─ Transpose ─ q ─ Attention          and so for k and v

    The products are the same, but nothing has to copy the parts out of the packed result. Left alone and refused: q, k
    or v that goes through operators that do more than move numbers (a normalization, a rotary embedding), and tokens
    that change their places.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Split the linear of every attention whose q, k and v come from one."""
        refused: dict[str, str] = {}
        fired = 0
        for core in attention_cores(graph):
            linear = _match_packed_linear(core)
            if linear is None:
                continue
            parts = _find_parts(core, linear)
            if isinstance(parts, str):
                refused[core.name or ""] = parts
                continue
            for index, part in enumerate(parts):
                core.replace_input_with(index, _write_linear(graph, core, linear, index, part))
            fired += 1
        if fired:
            graph.infer_shapes()
        return PassResult(fired, refused)


@dataclass(frozen=True)
class _Part:
    """The channels of the linear that are q, k or v, in the order (head, position in the head)."""

    channels: Array
    heads: int
    size: int


def _match_packed_linear(core: ir.Node) -> LinearMatch | None:
    """Match the one linear from which q, k and v come through operators that only move numbers."""
    products: set[ir.Node] = set()
    linear = None
    for value in (operand(core, index) for index in range(3)):
        while (linear := match_linear_ending_at(value)) is None:
            node = producer(value)
            if node is None or node.op_type not in MOVING or node.domain != "":
                return None
            value = operand(node, 0)
        products.add(linear.product)
    return linear if len(products) == 1 and linear is not None and linear.product.op_type == "MatMul" else None


def _find_parts(core: ir.Node, linear: LinearMatch) -> list[_Part] | str:
    """Return the channels of q, k and v, or why they cannot be told apart."""
    sizes = traced_sizes(linear.output)
    if sizes is None or len(sizes) != 3:
        return f"the output of {linear.product.name} is not (batch, tokens, channels) of known size"
    batch, tokens, channels = sizes
    if batch * tokens * channels > _MOST_NUMBERS:
        return f"the output of {linear.product.name} is too large to follow its channels"
    numbers = np.arange(batch * tokens * channels, dtype=np.int64).reshape(batch, tokens, channels)
    arrivals: dict[int, Array] = {}
    try:
        for reader, index, arrived in trace(linear.output, numbers):
            if reader is not core or index > 2:
                return f"{reader.name if reader is not None else 'the output'} reads {linear.product.name} too"
            arrivals[index] = arrived
    except ValueError as error:
        return f"the channels of its q, k and v are not known: {error}"
    parts = [_read_part(arrivals[index], batch, tokens, channels) for index in range(3)]
    return "its tokens change their places" if None in parts else [part for part in parts if part is not None]


def _read_part(arrived: Array, batch: int, tokens: int, channels: int) -> _Part | None:
    """Read which channels of (batch, tokens, channels) arrived as (batch, heads, tokens, size).

    Return None if a token is not in its old place.
    """
    if arrived.ndim != 4 or (arrived.shape[0], arrived.shape[2]) != (batch, tokens):
        return None
    row_starts = (np.arange(batch)[:, None, None, None] * tokens + np.arange(tokens)[:, None]) * channels
    columns = arrived - row_starts
    if (columns != columns[:1, :, :1]).any() or columns.min() < 0 or columns.max() >= channels:
        return None
    return _Part(columns[0, :, 0].reshape(-1), arrived.shape[1], arrived.shape[3])


def _write_linear(graph: Graph, core: ir.Node, linear: LinearMatch, index: int, part: _Part) -> ir.Value:
    """Write a linear with the columns of `part`, and return its output as (batch, heads, tokens, size)."""
    name = f"{(linear.product.name or '').rpartition('/')[0]}.{_NAMES[index]}"
    tape, dtype = ir.tape.Tape(), linear.weight.dtype
    weight = np.ascontiguousarray(linear.weight[:, part.channels])
    result = tape.op(
        "MatMul",
        [operand(linear.product, 0), tape.initializer(ir.tensor(weight, name=f"{name}/weight"))],
        name=f"{name}/MatMul",
    )
    if linear.bias is not None:
        bias = np.ascontiguousarray(linear.bias[part.channels].astype(dtype))
        result = tape.op("Add", [result, tape.initializer(ir.tensor(bias, name=f"{name}/bias"))], name=f"{name}/Add")
    shape = np.array([0, 0, part.heads, part.size], np.int64)
    heads = tape.op(
        "Reshape", [result, tape.initializer(ir.tensor(shape, name=f"{name}/heads_shape"))], name=f"{name}/Reshape"
    )
    transposed = tape.op("Transpose", [heads], {"perm": [0, 2, 1, 3]}, name=f"{name}/Transpose")
    graph.insert_before(core, tape)
    for node in tape.nodes:
        node.outputs[0].type = linear.output.type
    transposed.shape = operand(core, index).shape
    return transposed
