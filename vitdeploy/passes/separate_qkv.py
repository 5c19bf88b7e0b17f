"""Keep linears that read the same value apart, so that no compiler merges them into one product."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, operand, producer
from vitdeploy.graph.products import weight_of
from vitdeploy.passes import Pass, PassResult

_LOWEST = {
    ir.DataType.FLOAT16: (np.uint16, 0xFBFF, np.float16),
    ir.DataType.BFLOAT16: (np.uint16, 0xFF7F, ml_dtypes.bfloat16),
    ir.DataType.FLOAT: (np.uint32, 0xFF7FFFFF, np.float32),
}
"""The bits of the lowest finite number of a type. The next bits below are those of the next higher numbers."""


class SeparateQkv(Pass):
    """Let each of several linears on one value read a value of its own: its maximum with a bound that nothing is below.

            ┌ MatMul Wq                 ┌─────────────── MatMul Wq
        x ──┼ MatMul Wk    ─▶      x ───┼ Max(-65504) ── MatMul Wk
            └ MatMul Wv                 └ Max(-65472) ── MatMul Wv

    Each bound is another one of the lowest numbers of the type, so no two values are the same expression. With one
    bound for all, TensorRT-RTX 1.7 merges k and v again; an Identity and a pair of casts disappear. In a quantized
    graph the maximum stands before a Q/DQ pair of its own, which saturates far above it. Other linears on one value,
    such as the gate of an MLP, are kept apart too. Left alone: one linear for q, k and v, where nothing can be merged.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Separate all linears that share their input but the first of each group; `fired` counts them."""
        groups: dict[ir.Value, list[ir.Node]] = {}
        for node in graph.nodes:
            if node.op_type in ("Gemm", "MatMul") and weight_of(node) is not None:
                groups.setdefault(_source(operand(node, 0)), []).append(node)
        fired = 0
        for source, linears in groups.items():
            if source.dtype not in _LOWEST:
                continue
            for number, linear in enumerate(linears[1:]):
                _separate(graph, source, linear, number)
                fired += 1
        return PassResult(fired)


def _pair_above(value: ir.Value) -> tuple[ir.Node, ir.Node] | None:
    """Return the Q/DQ pair that makes `value`, or None."""
    dequantize = producer(value, "DequantizeLinear")
    quantize = None if dequantize is None else producer(operand(dequantize, 0), "QuantizeLinear")
    return None if dequantize is None or quantize is None else (quantize, dequantize)


def _source(value: ir.Value) -> ir.Value:
    """Return the float value that a linear reads, before its Q/DQ pair if it has one."""
    pair = _pair_above(value)
    return value if pair is None else operand(pair[0], 0)


def _separate(graph: Graph, source: ir.Value, linear: ir.Node, number: int) -> None:
    """Let `linear` read the maximum of `source` and the bound with this number."""
    name = f"{(linear.name or linear.op_type).rpartition('/')[0]}/apart"
    assert source.dtype is not None
    tape = ir.tape.Tape()
    bound = tape.initializer(ir.tensor(lowest(source.dtype, number), name=f"{name}/bound"))
    apart = tape.op("Max", [source, bound], name=f"{name}/Max")
    pair = _pair_above(operand(linear, 0))
    for node in pair or ():
        apart = tape.op(node.op_type, [apart, *node.inputs[1:]], dict(_copies(node)), name=f"{name}/{node.op_type}")
    graph.insert_before(linear, tape)
    like = [source, *(node.outputs[0] for node in pair or ())]
    for node, value in zip(tape.nodes, like, strict=True):
        node.outputs[0].type, node.outputs[0].shape = value.type, source.shape
    linear.replace_input_with(0, apart)


def _copies(node: ir.Node) -> Iterator[tuple[str, ir.Attr]]:
    yield from node.attributes.items()


def lowest(dtype: ir.DataType, number: int) -> np.ndarray:
    """Return the finite number of a type that has `number` finite ones below it."""
    bits, first, result = _LOWEST[dtype]
    return np.array(first - number, bits).view(result)
