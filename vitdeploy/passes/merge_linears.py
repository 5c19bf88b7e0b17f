"""Merge two linears with nothing between them into one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, dims, only_consumer, operand, producer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._linear import LinearMatch, fits_type, match_linear, match_linear_ending_at
from vitdeploy.session import Array


class MergeLinears(Pass):
    """Multiply the weights of two linears if only a Reshape of the tokens is between them, and that is less work.

        x ─ MatMul(V) ─ Add c ─ [Reshape] ─ MatMul(W) ─ Add b   ─▶   x ─ MatMul(V·W) ─ Add (c·W + b) ─ [Reshape]

    In SegFormer's head every map goes through two of them, see `HoistPointwise`. Left alone: a linear whose output
    another node reads too, and two that need fewer products than one, with a low rank between them.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Merge every such pair."""
        fired = 0
        for node in [n for n in graph.nodes if n.op_type == "MatMul" and n.domain == ""]:
            pair = _match(node)
            if pair is not None:
                _rewrite(graph, pair)
                fired += 1
        return PassResult(fired)


@dataclass(frozen=True)
class _Pair:
    """Two linears, the Reshape between them if there is one, and the numbers of the linear that replaces them."""

    first: LinearMatch
    reshape: ir.Node | None
    second: LinearMatch
    weight: Array
    bias: Array | None


def _match(product: ir.Node) -> _Pair | None:
    second = match_linear(product)
    value = operand(product, 0)
    if second is None or only_consumer(value) is None:
        return None
    reshape = producer(value, "Reshape")
    if reshape is not None:
        before, after = dims(reshape.inputs[0]), dims(value)
        if before is None or after is None or after.count(None) > 1 or not before[-1] == after[-1] is not None:
            return None
        value = operand(reshape, 0)
    first = match_linear_ending_at(value)
    if first is None or first.product.op_type != "MatMul" or only_consumer(value) is None:
        return None
    (inputs, between), outputs = first.weight.shape, second.channels
    if inputs * outputs >= inputs * between + between * outputs or first.weight.dtype != second.weight.dtype:
        return None
    weight = first.weight.astype(np.float64) @ second.weight.astype(np.float64)
    biases = [] if first.bias is None else [first.bias @ second.weight.astype(np.float64)]
    bias = sum([*biases, *([] if second.bias is None else [second.bias])], np.zeros(outputs))
    pair = _Pair(first, reshape, second, weight, bias if first.bias is not None or second.bias is not None else None)
    return pair if fits_type(second, weight, pair.bias) else None


def _rewrite(graph: Graph, pair: _Pair) -> None:
    first, second, tape = pair.first, pair.second, ir.tape.Tape()
    dtype, name = second.weight.dtype, str(first.product.name)
    value, sizes = operand(first.product, 0), dims(second.product.outputs[0]) or ()
    if pair.reshape is not None:
        sizes = (*(dims(pair.reshape.outputs[0]) or ())[:-1], second.channels)
        before = (*sizes[:-1], first.weight.shape[0])
        numbers = np.array([-1 if size is None else size for size in before], np.int64)
        shape = tape.initializer(ir.tensor(numbers, name=f"{pair.reshape.name}/sizes"))
        value = tape.op("Reshape", [value, shape], name=pair.reshape.name)
        value.shape, value.type = ir.Shape(before), second.output.type
    matrix = tape.initializer(ir.tensor(pair.weight.astype(dtype), name=f"{name}/weight_merged"))
    value = tape.op("MatMul", [value, matrix], name=name)
    if pair.bias is not None:
        value.shape, value.type = ir.Shape(sizes), second.output.type
        vector = tape.initializer(ir.tensor(pair.bias.astype(dtype), name=f"{name}/bias_merged"))
        value = tape.op("Add", [value, vector], name=f"{name}/bias" if first.add is None else first.add.name)
    old_nodes = [*first.nodes, *([] if pair.reshape is None else [pair.reshape]), *second.nodes]
    graph.replace(old_nodes, tape, second.output, value)
