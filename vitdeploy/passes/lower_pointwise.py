"""Replace linears between two moves of the channels by 1×1 convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.channel_moves import is_transpose, to_first, to_last
from vitdeploy.graph.model import Graph, array, bias_behind, constant, dims, only_consumer, operand, producer, scalar
from vitdeploy.passes import Pass, PassResult


class LowerPointwise(Pass):
    """Replace a linear by a 1×1 convolution where its input and output are channels first.

        x ─ Transpose ─ [Q ─ DQ] ─ MatMul(W) ─ [Add b] ─ Transpose   ─▶   x ─ [Q ─ DQ] ─ Conv(Wᵀ, b)

    It undoes `RaisePointwise` where no move merged with another one: the convolution needs none. Left alone: a linear
    whose weight alone is quantized, because engines unpack weights in products only; and with `int8_linears` "integer"
    one whose activation is quantized too. ONNX Runtime's product for those takes channels last, and two moves of
    its kernel cost less than its integer convolution.

    Attributes:
        int8_linears: the form of quantized linears that the target takes, as in `Dialect`.
    """

    int8_linears: Literal["qdq", "integer"] = "qdq"

    def apply(self, graph: Graph) -> PassResult:
        """Lower every linear between two moves."""
        fired = 0
        first: dict[ir.Value, ir.Value] = {}
        for node in [n for n in graph.nodes if n.op_type == "MatMul" and n.domain == ""]:
            match = _match(node)
            if match is not None and not (match.pair and self.int8_linears == "integer"):
                _rewrite(graph, match, first)
                fired += 1
        return PassResult(fired)


@dataclass(frozen=True)
class _Match:
    """A linear between two moves.

    Attributes:
        nodes: the MatMul, the Add of its bias if it has one, and the Transpose behind them.
        x: the value before the first Transpose.
        pair: QuantizeLinear and DequantizeLinear of the activation; empty if it is not quantized.
        bias: the constant that the Add adds.
    """

    nodes: list[ir.Node]
    x: ir.Value
    pair: tuple[ir.Node, ...]
    bias: ir.Value | None

    @property
    def product(self) -> ir.Node:
        """The MatMul."""
        return self.nodes[0]


def _match(product: ir.Node) -> _Match | None:
    data, rank = operand(product, 0), len(dims(product.outputs[0]) or ())
    pair: tuple[ir.Node, ...] = ()
    if (dequantize := producer(data, "DequantizeLinear")) is not None:
        quantize = producer(dequantize.inputs[0], "QuantizeLinear")
        if quantize is None or any(scalar(value) is None for value in quantize.inputs[1:]):
            return None
        pair, data = (quantize, dequantize), operand(quantize, 0)
    before = producer(data, "Transpose")
    addition = bias_behind(product)
    last = product if addition is None else addition[0]
    after = only_consumer(last.outputs[0], "Transpose")
    if rank < 3 or before is None or not is_transpose(before, to_last(rank)) or not is_transpose(after, to_first(rank)):
        return None
    assert after is not None
    if not _is_weight(operand(product, 1), is_paired=bool(pair)):
        return None
    nodes = [product, after] if addition is None else [product, addition[0], after]
    return _Match(nodes, operand(before, 0), pair, None if addition is None else addition[1])


def _is_weight(weight: ir.Value, *, is_paired: bool) -> bool:
    """Return whether a weight is a matrix that can be written as a kernel: float, or with one scale for each output."""
    node = producer(weight, "Cast", "DequantizeLinear")
    matrix = constant(weight if node is None else node.inputs[0])
    if matrix is None or len(matrix.shape) != 2 or is_paired != (node is not None and node.op_type != "Cast"):
        return False
    if node is None or node.op_type == "Cast":
        return True
    scale = constant(node.inputs[1])
    return scale is not None and len(scale.shape) <= 1 and node.attributes.get_int("axis", 1) in (1, -1)


def _rewrite(graph: Graph, match: _Match, first: dict[ir.Value, ir.Value]) -> None:
    """Write the convolution. `first` holds the activations that have been quantized channels first already."""
    tape, product = ir.tape.Tape(), match.product
    x = match.x
    if match.pair:
        key = match.pair[1].outputs[0]
        if key not in first:
            first[key] = _move_pair(tape, match)
        x = first[key]
    inputs = [x, _write_kernel(tape, operand(product, 1), len(dims(match.x) or ()) - 2)]
    if match.bias is not None:
        inputs.append(match.bias)
    attributes = {"kernel_shape": [1] * (len(dims(match.x) or ()) - 2)}
    result = tape.op("Conv", inputs, attributes, name=product.name)
    graph.replace(match.nodes, tape, match.nodes[-1].outputs[0], result)


def _move_pair(tape: ir.tape.Tape, match: _Match) -> ir.Value:
    """Write the Q/DQ pair of the activation before its Transpose.

    It is named after the activation, as every pair is: an engine makes it part of the kernel that computes that.
    """
    value = match.x
    for node, label in zip(match.pair, ("quantize", "dequantize"), strict=True):
        old = node.outputs[0]
        attributes = {key: a.value for key, a in node.attributes.items() if a.value is not None and key != "axis"}
        value = tape.op(node.op_type, [value, *node.inputs[1:]], attributes, name=f"{match.x.name}/{label}")
        if old.type is not None:  # a shape without a type cannot be stored
            value.shape, value.type = match.x.shape, old.type
    return value


def _write_kernel(tape: ir.tape.Tape, weight: ir.Value, sides: int) -> ir.Value:
    """Write a weight (K, N) as a kernel (N, K, 1, …), with the node that makes it of codes or of another type."""
    node = producer(weight, "Cast", "DequantizeLinear")
    old = weight if node is None else operand(node, 0)
    numbers = array(old)
    kernel = np.ascontiguousarray(numbers.T).reshape(*numbers.shape[::-1], *[1] * sides)
    value = tape.initializer(ir.tensor(kernel, name=f"{old.name}/kernel"))
    if node is None:
        return value
    attributes = {key: a.value for key, a in node.attributes.items() if a.value is not None and key != "axis"}
    if node.op_type == "DequantizeLinear":
        attributes["axis"] = 0
    result = tape.op(node.op_type, [value, *node.inputs[1:]], attributes, name=f"{node.name}/kernel")
    result.shape, result.type = ir.Shape(kernel.shape), weight.type
    return result
