"""Pad attentions to head sizes that the target's fused kernel takes, and split single heads in two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.dialect import FusedAttention
from vitdeploy.graph.model import Graph, dims
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention import attention_cores, scale_of, unsupported_reason

_FUSED_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Data types that have fused kernels. In float32 the padding would only cost time."""


class FitAttention(Pass):
    """Pad the heads of q, k and v to one size, and split the queries of a single head in two.

        q, k (…, 16)                 q, k ─ Pad (…, 32) ─┐            zeros add nothing to q · k;
        v    (…, 32) Attention  ─▶   v ───────────────── Attention    if v is padded, a Slice cuts the zeros off

        q    (1, 1, N, d)            q    ─ Reshape (1, 2, N/2, d) ─┐
        k, v (1, 1, M, d) Attention ─▶ k, v ─ Expand (1, 2, M, d) ── Attention ─ Reshape (1, 1, N, d)

    Padding costs 2 operations for each score and added column. An unfused attention writes and reads its scores twice,
    which is 8 bytes for each score. In that time a GPU does a thousand operations or more, so padding always pays.
    Splitting moves q and the result once more, which is 8 bytes for each query and column. It pays if there are more
    keys than columns in a head.

    Left alone: attentions in float32, which have no fused kernels, and those that `unsupported_reason` names. Refused:
    heads that are larger than the kernel's, and a single head with an odd number of queries.
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
            splits = has_one_head and _has_even_queries(core)
            if has_one_head and not splits:
                refused[core.name or ""] = "its single head has an odd or unknown number of queries"
            if splits or any(n != size for n in sizes):
                _fit(graph, core, size, split=splits)
                fired += 1
        return PassResult(fired, refused)


def _describe(sizes: list[int | None]) -> str:
    return " and ".join(str(n or "unknown") for n in dict.fromkeys(sizes))


def _has_even_queries(core: ir.Node) -> bool:
    """Return whether the queries, and the bias with them, can be split into halves."""
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
    q, k, v = writer.pad("q", q), writer.pad("k", k), writer.pad("v", v)
    if split:
        queries = _size(q, 2)
        q = writer.reshape("split_q", q, [1, 2, queries // 2, size])
        k, v = (writer.copy(label, value) for label, value in (("k", k), ("v", v)))
        bias = [writer.split_bias(value, queries) for value in bias]
    result = writer.tape.op("Attention", [q, k, v, *bias], {"scale": scale_of(core)}, name=core.name)
    result.type = q.type
    if split:
        result = writer.reshape("merge", result, [1, 1, queries, size])
    if value_size != size:
        ends = [writer.ints(label, [n]) for label, n in (("from", 0), ("to", value_size), ("axis", 3))]
        result = writer.tape.op("Slice", [result, *ends], name=f"{core.name}/cut")
    graph.replace([core], writer.tape, core.outputs[0], result)


def _size(value: ir.Value, axis: int) -> int:
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

    def copy(self, label: str, value: ir.Value) -> ir.Value:
        """Copy the keys or values for both heads: a fused kernel does not broadcast."""
        shape = [1, 2, *_outer_shape(value)[2:], self.size]
        return self._write("Expand", f"copy_{label}", value, self.ints(f"{label}_copies", [1, 2, 1, 1]), shape)

    def _write(
        self, op_type: str, label: str, value: ir.Value, numbers: ir.Value, shape: Sequence[int | ir.SymbolicDim]
    ) -> ir.Value:
        result = self.tape.op(op_type, [value, numbers], name=f"{self.name}/{label}")
        result.shape, result.type = ir.Shape(shape), value.type
        return result

    def split_bias(self, bias: ir.Value, queries: int) -> ir.Value:
        shape = dims(bias) or ()
        if len(shape) < 2 or shape[-2] == 1:
            return bias
        return self.reshape("split_bias", bias, [1, 2, queries // 2, int(shape[-1] or 0)])
