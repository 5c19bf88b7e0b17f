"""Lower each attention to the plain operators that OpenVINO and TensorRT recognise and fuse."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, dims, producer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention import MASKED, attention_cores, scale_of, unsupported_reason

_HALF_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class LowerPrimitives(Pass):
    """Replace `Attention` by its plain operators, with the scale on q, as TensorRT's fusion rules require.

        q, k, v, [bias]        q ─ Mul scale ─────┐
           Attention(scale) ─▶ k ─ Transpose ─ MatMul ─ [Add bias] ─ Softmax ─ MatMul ─ v

    A scale of 1, which folding leaves, is not written. With a bias this form compiles to fewer kernels:
    OpenVINO's import of `Attention` adds a kernel for each site, and TensorRT-RTX needs 12 layers where `Attention`
    needs 24. One head of keys and values for all queries is left to the products, which broadcast it; several are
    repeated. Left alone and refused: attentions with further options (causal, soft cap, cached keys).

    Attributes:
        only: the names of the attentions to lower; None for all.
    """

    only: frozenset[str] | None = None

    def apply(self, graph: Graph) -> PassResult:
        """Lower every attention."""
        refused, fired = {}, 0
        for core in attention_cores(graph):
            if self.only is not None and core.name not in self.only:
                continue
            if reason := unsupported_reason(core):
                refused[core.name or ""] = reason
                continue
            _lower(graph, core)
            fired += 1
        return PassResult(fired, refused)


def _lower(graph: Graph, core: ir.Node) -> None:
    q, k, v = core.inputs[:3]
    bias = core.inputs[3] if len(core.inputs) > 3 else None
    name, tape = core.name, ir.tape.Tape()
    dtype = q.dtype.numpy() if q is not None and q.dtype in _HALF_TYPES else np.dtype(np.float32)

    def number(label: str, value: float) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(value, dtype), name=f"{name}/{label}"))

    scale = scale_of(core)
    scaled = q if scale == 1.0 else tape.op("Mul", [q, number("scale", scale)], name=f"{name}/scale_q")
    k, v = (_repeat_heads(tape, q, x, f"{name}/repeat_{label}") for x, label in ((k, "k"), (v, "v")))
    keys = tape.op("Transpose", [k], {"perm": [0, 1, 3, 2]}, name=f"{name}/transpose_k")
    scores = tape.op("MatMul", [scaled, keys], name=f"{name}/qk")
    if bias is not None:
        if bias.dtype == ir.DataType.BOOL:
            bias = tape.op("Where", [bias, number("zero", 0.0), number("masked", MASKED)], name=f"{name}/mask")
        scores = tape.op("Add", [scores, _without_copies(bias)], name=f"{name}/bias")
    probabilities = tape.op("Softmax", [scores], {"axis": -1}, name=f"{name}/softmax")
    result = tape.op("MatMul", [probabilities, v], name=f"{name}/pv")
    graph.replace([core], tape, core.outputs[0], result)


def _without_copies(bias: ir.Value) -> ir.Value:
    """Return a bias before an Expand copies it for each query: an Add broadcasts."""
    expand = producer(bias, "Expand")
    source = None if expand is None else expand.inputs[0]
    before, after = dims(source), dims(bias)
    is_row = before is not None and after is not None and len(before) == len(after) and before[-1] == after[-1]
    return source if source is not None and is_row else bias


def _repeat_heads(tape: ir.tape.Tape, q: ir.Value | None, x: ir.Value | None, name: str) -> ir.Value | None:
    """Repeat each head of keys or values for the heads of queries that share it, unless there is only one.

    (batch, groups, tokens, size) ─ Unsqueeze, Expand (batch, groups, heads / groups, …) ─ Reshape (batch, heads, …)
    """
    queries, sizes = dims(q), dims(x)
    if queries is None or sizes is None or sizes[1] in (1, queries[1]):
        return x

    def ints(label: str, numbers: list[int]) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(numbers, np.int64), name=f"{name}/{label}"))

    heads, groups = int(queries[1] or 0), int(sizes[1] or 0)
    apart = tape.op("Unsqueeze", [x, ints("axis", [2])], name=f"{name}/Unsqueeze")
    repeated = tape.op("Expand", [apart, ints("times", [1, 1, heads // groups, 1, 1])], name=f"{name}/Expand")
    merged = ints("shape", [0, heads, -1, int(sizes[3] or -1)])
    return tape.op("Reshape", [repeated, merged], name=f"{name}/Reshape")
