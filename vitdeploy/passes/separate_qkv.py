"""Keep linears that read the same value apart, so that no compiler merges them into one product."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, operand, producer
from vitdeploy.graph.products import weight_of
from vitdeploy.graph.recognize import linears_above
from vitdeploy.graph.structure import CORE, PART
from vitdeploy.passes import Pass, PassResult

_LOWEST = {
    ir.DataType.FLOAT16: (np.uint16, 0xFBFF, np.float16),
    ir.DataType.BFLOAT16: (np.uint16, 0xFF7F, ml_dtypes.bfloat16),
    ir.DataType.FLOAT: (np.uint32, 0xFF7FFFFF, np.float32),
}
"""The bits of the lowest finite number of a type. The next bits below are those of the next higher numbers."""


_PARTS = 3


class SeparateQkv(Pass):
    """Let each of several linears on one value read a value of its own: its maximum with a bound that nothing is below.

            ┌ MatMul Wq                 ┌─────────────── MatMul Wq
        x ──┼ MatMul Wk    ─▶      x ───┼ Max(-65504) ── MatMul Wk
            └ MatMul Wv                 └ Max(-65472) ── MatMul Wv

                                        ┌─────────────── MatMul Slice(W) ─┐
        x ── MatMul W      ─▶      x ───┼ Max(-65504) ── MatMul Slice(W) ─┼ Concat
                                        └ Max(-65472) ── MatMul Slice(W) ─┘

    Each bound is another one of the lowest numbers of the type, so no two values are the same expression. With one
    bound for all, TensorRT-RTX 1.7 merges k and v again; an Identity and a pair of casts disappear. In a quantized
    graph the maximum stands before a Q/DQ pair of its own, which saturates far above it. Other linears on one value,
    such as the gate of an MLP, are kept apart too.

    One linear for q, k and v stays one where these are rotated or normalized. It is multiplied in three parts then, in
    the order of its channels, which are q, k and v unless each head has its own three. Its weight is cut in the graph,
    and keeps its bytes. Left alone: all other linears that are alone on their value.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Separate all linears that share their input but the first of each group; `fired` counts them."""
        for product in _packed_products(graph):
            _split(graph, product)
        groups: dict[ir.Value, list[ir.Node]] = {}
        for node in graph.nodes:
            if node.op_type in ("Gemm", "MatMul") and (weight_of(node) is not None or _is_part(node)):
                groups.setdefault(_source(operand(node, 0)), []).append(node)
        fired = 0
        for source, linears in groups.items():
            if source.dtype not in _LOWEST:
                continue
            for number, linear in enumerate(linears[1:]):
                _separate(graph, source, linear, number)
                fired += 1
        return PassResult(fired)


def _packed_products(graph: Graph) -> list[ir.Node]:
    """Return the products that give q, k and v of one attention."""
    by_name = {node.name: node for node in graph.nodes}
    products: dict[ir.Node, None] = {}
    for name, scores in by_name.items():
        result = by_name.get(f"{(name or '').removesuffix('/qk')}/pv") if (name or "").endswith(f"{CORE}/qk") else None
        if result is None:
            continue
        above = [linears_above([value]) for value in (*scores.inputs, result.inputs[1])]
        product = above[0][0] if above[0] and all(linears == above[0][:1] for linears in above) else None
        weight = None if product is None or product.op_type != "MatMul" else weight_of(product)
        if product is not None and weight is not None and weight[1] % _PARTS == 0 and product.outputs[0].shape:
            products[product] = None
    return list(products)


def _split(graph: Graph, product: ir.Node) -> None:
    """Multiply by each third of the weight's columns, and join the results."""
    weight, old = operand(product, 1), product.outputs[0]
    rows, columns = weight_of(product) or (0, 0)
    size = columns // _PARTS
    tape = ir.tape.Tape()

    def ints(label: str, number: int) -> ir.Value:
        return tape.initializer(ir.tensor(np.array([number], np.int64), name=f"{product.name}/{label}"))

    parts = []
    for part in range(_PARTS):
        bounds = [ints("from", part * size), ints("to", (part + 1) * size), ints("axis", 1)]
        third = tape.op("Slice", [weight, *bounds], name=f"{product.name}/weight{part}")
        parts.append(tape.op("MatMul", [product.inputs[0], third], name=f"{product.name}{PART}{part}"))
        third.type, third.shape = weight.type, ir.Shape([rows, size])
        parts[-1].type, parts[-1].shape = old.type, ir.Shape([*list(old.shape or ())[:-1], size])
    graph.replace([product], tape, old, tape.op("Concat", parts, {"axis": -1}, name=f"{product.name}/join"))


def _is_part(node: ir.Node) -> bool:
    return PART in (node.name or "")


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
