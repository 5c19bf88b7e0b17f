"""Bring each attention within what the target's fused kernel takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.dialect import FusedAttention
from vitdeploy.graph.model import Graph, dims
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention import attention_cores, scale_of, unsupported

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""What there are fused kernels for. In float32 a fitted attention would only cost more."""


class FitAttention(Pass):
    """Zeros make the heads of q, k and v one size; a single head's queries are dealt to two.

        q, k (…, 16)                 q, k ─ Pad (…, 32) ─┐            zeros add nothing to q · k;
        v    (…, 32) Attention  ─▶   v ───────────────── Attention    of v they are cut off: [Slice]

        q    (1, 1, N, d)            q    ─ Reshape (1, 2, N/2, d) ─┐
        k, v (1, 1, M, d) Attention ─▶ k, v ─ Expand (1, 2, M, d) ── Attention ─ Reshape (1, 1, N, d)

    Padding costs 2 operations for each score and added column. An unfused attention writes and reads its scores twice,
    8 bytes for each, in which time a GPU does a thousand operations and more: padding pays at every size there is.
    Dealing moves q and the result once more, 8 bytes for each query and column: it pays with more keys than columns.
    Left alone are attentions in float32, which has no fused kernels, and what `unsupported` names; refused are heads
    larger than the kernel's and a single head with an odd number of queries.
    """

    kernel: FusedAttention

    def apply(self, graph: Graph) -> PassResult:
        """Fit every core."""
        refused, fired = {}, 0
        for core in attention_cores(graph):
            q = core.inputs[0]
            if unsupported(core) or q is None or q.dtype not in _HALF:
                continue
            sizes = [(dims(v) or ())[3] for v in core.inputs[:3]]
            size = self.kernel.fitted(sizes)
            if size is None:
                refused[core.name or ""] = f"its head size, {_told(sizes)}, is not one of {self.kernel.told}"
                continue
            lonely = (dims(q) or ())[:2] == (1, 1)
            if lonely and not _divisible(core):
                refused[core.name or ""] = "its single head has an odd or unknown number of queries"
                lonely = False
            if lonely or any(n != size for n in sizes):
                _fit(graph, core, size, split=lonely)
                fired += 1
        return PassResult(fired, refused)


def _told(sizes: list[int | None]) -> str:
    return " and ".join(str(n or "unknown") for n in dict.fromkeys(sizes))


def _divisible(core: ir.Node) -> bool:
    """Whether the queries, and the bias with them, can be cut into halves."""
    queries = (dims(core.inputs[0]) or ())[2]
    if queries is None or queries % 2:
        return False
    bias = core.inputs[3] if len(core.inputs) > 3 else None
    if bias is None:
        return True
    shape = dims(bias)
    return shape is not None and (len(shape) < 2 or shape[-2] == 1 or (shape[-2] == queries and shape[-1] is not None))


def _fit(graph: Graph, core: ir.Node, size: int, *, split: bool) -> None:
    writer = _Writer(core, size)
    q, k, v, *bias = (value for value in core.inputs[:4] if value is not None)
    value_size = _size(v, 3)
    q, k, v = writer.padded("q", q), writer.padded("k", k), writer.padded("v", v)
    if split:
        queries = _size(q, 2)
        q = writer.shaped("Reshape", "split_q", q, [1, 2, queries // 2, size])
        k, v = (writer.copied(label, value) for label, value in (("k", k), ("v", v)))
        bias = [writer.split_bias(value, queries) for value in bias]
    result = writer.tape.op("Attention", [q, k, v, *bias], {"scale": scale_of(core)}, name=core.name)
    result.type = q.type
    if split:
        result = writer.shaped("Reshape", "merge", result, [1, 1, queries, size])
    if value_size != size:
        ends = [writer.ints(label, [n]) for label, n in (("from", 0), ("to", value_size), ("axis", 3))]
        result = writer.tape.op("Slice", [result, *ends], name=f"{core.name}/cut")
    graph.replace([core], writer.tape, core.outputs[0], result)


def _size(value: ir.Value, axis: int) -> int:
    """A dimension that is known to be fixed."""
    return int((dims(value) or ())[axis] or 0)


def _outer(value: ir.Value) -> list[int | ir.SymbolicDim]:
    """All dimensions but the last, which may vary."""
    return list(value.shape or ())[:-1]


class _Writer:
    """Records the nodes around one core, with the shapes that lowering asks for."""

    def __init__(self, core: ir.Node, size: int) -> None:
        self.tape, self.name, self.size = ir.tape.Tape(), core.name, size

    def ints(self, label: str, values: list[int]) -> ir.Value:
        return self.tape.initializer(ir.tensor(np.array(values, np.int64), name=f"{self.name}/{label}"))

    def shaped(self, op_type: str, label: str, value: ir.Value, shape: list[int]) -> ir.Value:
        return self._made(op_type, label, value, self.ints(f"{label}_shape", shape), shape)

    def padded(self, label: str, value: ir.Value) -> ir.Value:
        own = _size(value, 3)
        if own == self.size:
            return value
        pads = self.ints(f"{label}_pads", [0] * 7 + [self.size - own])
        return self._made("Pad", f"pad_{label}", value, pads, [*_outer(value), self.size])

    def copied(self, label: str, value: ir.Value) -> ir.Value:
        """The keys or values for both heads: a fused kernel does not broadcast."""
        shape = [1, 2, *_outer(value)[2:], self.size]
        return self._made("Expand", f"copy_{label}", value, self.ints(f"{label}_copies", [1, 2, 1, 1]), shape)

    def _made(
        self, op_type: str, label: str, value: ir.Value, how: ir.Value, shape: Sequence[int | ir.SymbolicDim]
    ) -> ir.Value:
        result = self.tape.op(op_type, [value, how], name=f"{self.name}/{label}")
        result.shape, result.type = ir.Shape(shape), value.type
        return result

    def split_bias(self, bias: ir.Value, queries: int) -> ir.Value:
        shape = dims(bias) or ()
        if len(shape) < 2 or shape[-2] == 1:
            return bias
        return self.shaped("Reshape", "split_bias", bias, [1, 2, queries // 2, int(shape[-1] or 0)])
