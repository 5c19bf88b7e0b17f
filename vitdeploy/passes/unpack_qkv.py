"""Give query, key and value a linear each, where one packed linear makes all three."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, dims, operand, producer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention import attention_cores
from vitdeploy.passes._linear import Linear, linear_ending_at
from vitdeploy.passes._moved import MOVING, follow
from vitdeploy.session import Array

_NAMES = ("q", "k", "v")
_MOST_NUMBERS = 1 << 28
"""Of one linear's output, in one image: the paths of its channels are followed with a number for each."""


class UnpackQkv(Pass):
    """One linear for each of q, k and v, its columns in the order in which attention takes them.

        x ─ MatMul(W) ─ Add b ─ Reshape ─ Transpose ─ Split ─ q, k, v ─ Attention
     ─▶ x ─ MatMul(Wq) ─ Add bq ─ Reshape ─ Transpose ─ q ─ Attention          and so for k and v

    The same products, without the copies that take the packed result apart. Left alone and refused: q, k or v that
    something else than moving stands before (a normalization, rotary embedding), or whose tokens are moved as well.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Unpack every attention whose q, k and v come from one linear."""
        refused: dict[str, str] = {}
        fired = 0
        for core in attention_cores(graph):
            linear = _packed(core)
            if linear is None:
                continue
            columns = _columns(core, linear)
            if isinstance(columns, str):
                refused[core.name or ""] = columns
                continue
            for index, taken in enumerate(columns):
                core.replace_input_with(index, _own_linear(graph, core, linear, index, taken))
            fired += 1
        if fired:
            graph.infer_shapes()
        return PassResult(fired, refused)


@dataclass(frozen=True)
class _Taken:
    """The linear's channels that one of q, k and v takes, in the order (head, position in the head)."""

    channels: Array
    heads: int
    size: int


def _packed(core: ir.Node) -> Linear | None:
    """The linear that q, k and v all come from through operators that only move numbers."""
    found: set[ir.Node] = set()
    linear = None
    for value in (operand(core, index) for index in range(3)):
        while (linear := linear_ending_at(value)) is None:
            node = producer(value)
            if node is None or node.op_type not in MOVING or node.domain != "":
                return None
            value = operand(node, 0)
        found.add(linear.product)
    return linear if len(found) == 1 and linear is not None and linear.product.op_type == "MatMul" else None


def _columns(core: ir.Node, linear: Linear) -> list[_Taken] | str:
    shape = [1 if n is None and i == 0 else n for i, n in enumerate(dims(linear.output) or ())]
    if len(shape) != 3 or None in shape:
        return f"the output of {linear.product.name} is not (batch, tokens, channels) of known size"
    batch, tokens, channels = (int(n or 0) for n in shape)
    if batch * tokens * channels > _MOST_NUMBERS:
        return f"the output of {linear.product.name} is too large to follow its channels"
    numbers = np.arange(batch * tokens * channels, dtype=np.int64).reshape(batch, tokens, channels)
    seen: dict[int, Array] = {}
    try:
        for reader, index, arrived in follow(linear.output, numbers):
            if reader is not core or index > 2:
                return f"{reader.name if reader is not None else 'the output'} reads {linear.product.name} too"
            seen[index] = arrived
    except ValueError as error:
        return f"its q, k and v are not known: {error}"
    taken = [_taken(seen[index], batch, tokens, channels) for index in range(3)]
    return "its tokens are moved on the way" if None in taken else [t for t in taken if t is not None]


def _taken(arrived: Array, batch: int, tokens: int, channels: int) -> _Taken | None:
    """What of (batch, tokens, channels) arrived as (batch, heads, tokens, size), if every token stayed in its place."""
    if arrived.ndim != 4 or (arrived.shape[0], arrived.shape[2]) != (batch, tokens):
        return None
    rows = (np.arange(batch)[:, None, None, None] * tokens + np.arange(tokens)[:, None]) * channels
    places = arrived - rows
    if (places != places[:1, :, :1]).any() or places.min() < 0 or places.max() >= channels:
        return None
    return _Taken(places[0, :, 0].reshape(-1), arrived.shape[1], arrived.shape[3])


def _own_linear(graph: Graph, core: ir.Node, linear: Linear, index: int, taken: _Taken) -> ir.Value:
    """A linear with these columns, as (batch, heads, tokens, size)."""
    name = f"{(linear.product.name or '').rpartition('/')[0]}.{_NAMES[index]}"
    tape, dtype = ir.tape.Tape(), linear.weight.dtype
    weight = np.ascontiguousarray(linear.weight[:, taken.channels])
    result = tape.op(
        "MatMul",
        [operand(linear.product, 0), tape.initializer(ir.tensor(weight, name=f"{name}/weight"))],
        name=f"{name}/MatMul",
    )
    if linear.bias is not None:
        bias = np.ascontiguousarray(linear.bias[taken.channels].astype(dtype))
        result = tape.op("Add", [result, tape.initializer(ir.tensor(bias, name=f"{name}/bias"))], name=f"{name}/Add")
    shape = np.array([0, 0, taken.heads, taken.size], np.int64)
    heads = tape.op(
        "Reshape", [result, tape.initializer(ir.tensor(shape, name=f"{name}/heads_shape"))], name=f"{name}/Reshape"
    )
    moved = tape.op("Transpose", [heads], {"perm": [0, 2, 1, 3]}, name=f"{name}/Transpose")
    for initializer in tape.initializers:
        graph.model.graph.register_initializer(initializer)
    graph.model.graph.insert_before(core, list(tape.nodes))
    for node in tape.nodes:
        node.outputs[0].name, node.outputs[0].type = f"{node.name}:0", linear.output.type
    moved.shape = operand(core, index).shape
    return moved
