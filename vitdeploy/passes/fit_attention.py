"""Bring attentions to the head sizes and numbers of heads that the target's fused kernel takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.dialect import FusedAttention
from vitdeploy.graph.model import Graph, dims
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention import attention_cores, has_fewer_key_heads, scale_of, unsupported_reason

_FUSED_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Data types that have fused kernels. In float32 the padding would only cost time."""


class FitAttention(Pass):
    """Pad the heads of q, k and v to one size, split the queries of a single head in two, and repeat shared keys.

        q, k (…, 16)                 q, k ─ Pad (…, 32) ─┐            zeros add nothing to q · k;
        v    (…, 32) Attention  ─▶   v ───────────────── Attention    if v is padded, a Slice cuts the zeros off

        q    (1, 1, N, d)            q    ─ Reshape (1, 2, N/2, d) ─┐
        k, v (1, 1, M, d) Attention ─▶ k, v ─ Expand (1, 2, M, d) ── Attention ─ Reshape (1, 1, N, d)

        q    (B, H, N, d)            q    ──────────────────────────┐
        k, v (B, 1, M, d) Attention ─▶ k, v ─ Expand (B, H, M, d) ── Attention

    Padding costs 2 operations for each score and added column. An unfused attention writes and reads its scores twice,
    which is 8 bytes for each score. In that time a GPU does a thousand operations or more, so padding always pays.
    Splitting moves q and the result once more, which is 8 bytes for each query and column. It pays if there are more
    keys than columns in a head. An odd number of queries gets one more, which is cut off behind.

    Left alone: attentions in float32, which have no fused kernels, and those that `unsupported_reason` names. Refused:
    heads that are larger than the kernel's, and a single head with an unknown number of queries.
    """

    kernel: FusedAttention

    def apply(self, graph: Graph) -> PassResult:
        """Pad and split every attention that needs it."""
        refused, fired = {}, 0
        for core in attention_cores(graph):
            q = core.inputs[0]
            if unsupported_reason(core) or q is None or q.dtype not in _FUSED_TYPES:
                continue
            sizes = [(dims(v) or ())[3] for v in core.inputs[:3]]
            size = self.kernel.padded_size(sizes)
            if size is None:
                refused[core.name or ""] = f"its head size, {_describe(sizes)}, is not one of {self.kernel.describe()}"
                continue
            has_one_head = (dims(q) or ())[:2] == (1, 1)
            splits = has_one_head and _can_split(core)
            if has_one_head and not splits:
                refused[core.name or ""] = "its single head has an unknown number of queries"
            if splits or has_fewer_key_heads(core) or any(n != size for n in sizes):
                _fit(graph, core, size, split=splits)
                fired += 1
        return PassResult(fired, refused)


def _describe(sizes: list[int | None]) -> str:
    return " and ".join(str(n or "unknown") for n in dict.fromkeys(sizes))


def _can_split(core: ir.Node) -> bool:
    """Return whether the queries, and the bias with them, can be split into halves."""
    queries = (dims(core.inputs[0]) or ())[2]
    if queries is None:
        return False
    bias = core.inputs[3] if len(core.inputs) > 3 else None
    if bias is None:
        return True
    shape = dims(bias)
    return shape is not None and (len(shape) < 2 or shape[-2] == 1 or (shape[-2] == queries and shape[-1] is not None))


def _fit(graph: Graph, core: ir.Node, size: int, *, split: bool) -> None:
    writer = _Writer(core, size)
    q, k, v, *bias = (value for value in core.inputs[:4] if value is not None)
    value_size, queries = _size(v, 3), (dims(q) or ())[2]
    q, k, v = writer.pad("q", q), writer.pad("k", k), writer.pad("v", v)
    if split:
        half = (_size(q, 2) + 1) // 2
        q = writer.reshape("split_q", writer.add_row("q", q, 2 * half), [1, 2, half, size])
        k, v = (writer.copy(label, value, 2) for label, value in (("k", k), ("v", v)))
        bias = [writer.split_bias(value, half) for value in bias]
    elif has_fewer_key_heads(core) and _size(k, 1) == 1:
        k, v = (writer.copy(label, value, _size(q, 1)) for label, value in (("k", k), ("v", v)))
    result = writer.tape.op("Attention", [q, k, v, *bias], {"scale": scale_of(core)}, name=core.name)
    result.type = q.type
    if split:
        result = writer.reshape("merge", result, [1, 1, 2 * half, size])
        result = writer.cut("cut_row", result, 2, _size(core.inputs[0], 2)) if queries != 2 * half else result
    if value_size != size:
        result = writer.cut("cut", result, 3, value_size)
    graph.replace([core], writer.tape, core.outputs[0], result)


def _size(value: ir.Value | None, axis: int) -> int:
    """Return a size that is known to be fixed."""
    return int((dims(value) or ())[axis] or 0)


def _outer_shape(value: ir.Value) -> list[int | ir.SymbolicDim]:
    """Return all sizes but the last one. They may vary."""
    return list(value.shape or ())[:-1]


class _Writer:
    """A tape that records the nodes around one attention, with the shapes that lowering needs."""

    def __init__(self, core: ir.Node, size: int) -> None:
        self.tape, self.name, self.size = ir.tape.Tape(), core.name, size

    def ints(self, label: str, values: list[int]) -> ir.Value:
        return self.tape.initializer(ir.tensor(np.array(values, np.int64), name=f"{self.name}/{label}"))

    def reshape(self, label: str, value: ir.Value, shape: list[int]) -> ir.Value:
        return self._write("Reshape", label, value, self.ints(f"{label}_shape", shape), shape)

    def pad(self, label: str, value: ir.Value) -> ir.Value:
        """Pad the head size with zeros."""
        head_size = _size(value, 3)
        if head_size == self.size:
            return value
        pads = self.ints(f"{label}_pads", [0] * 7 + [self.size - head_size])
        return self._write("Pad", f"pad_{label}", value, pads, [*_outer_shape(value), self.size])

    def add_row(self, label: str, value: ir.Value, rows: int) -> ir.Value:
        """Add zeros behind the rows of the last two axes until there are `rows`."""
        shape = list(value.shape or ())
        missing = rows - _size(value, len(shape) - 2)
        if not missing:
            return value
        pads = self.ints(f"{label}_rows", [0] * (2 * len(shape) - 2) + [missing, 0])
        return self._write("Pad", f"pad_{label}_rows", value, pads, [*shape[:-2], rows, shape[-1]])

    def cut(self, label: str, value: ir.Value, axis: int, end: int) -> ir.Value:
        """Cut off what is behind `end` on `axis`."""
        ends = [self.ints(f"{label}_{part}", [n]) for part, n in (("from", 0), ("to", end), ("axis", axis))]
        return self.tape.op("Slice", [value, *ends], name=f"{self.name}/{label}")

    def copy(self, label: str, value: ir.Value, heads: int) -> ir.Value:
        """Copy the keys or values for all heads: a fused kernel does not broadcast."""
        outer = _outer_shape(value)
        numbers = self.ints(f"{label}_copies", [1, heads, 1, 1])
        return self._write("Expand", f"copy_{label}", value, numbers, [outer[0], heads, outer[2], self.size])

    def _write(
        self, op_type: str, label: str, value: ir.Value, numbers: ir.Value, shape: Sequence[int | ir.SymbolicDim]
    ) -> ir.Value:
        result = self.tape.op(op_type, [value, numbers], name=f"{self.name}/{label}")
        result.shape, result.type = ir.Shape(shape), value.type
        return result

    def split_bias(self, bias: ir.Value, half: int) -> ir.Value:
        shape = dims(bias) or ()
        if len(shape) < 2 or shape[-2] == 1:
            return bias
        return self.reshape("split_bias", self.add_row("bias", bias, 2 * half), [1, 2, half, int(shape[-1] or 0)])
