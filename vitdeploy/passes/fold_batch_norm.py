"""Fold a batch normalization into the convolution or linear before it, or into the linear behind it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.channel_moves import is_transpose, to_last
from vitdeploy.graph.model import Graph, array, constant, dims, only_consumer, operand, producer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._linear import (
    LinearMatch,
    broadcast_per_channel,
    bypass,
    fits_type,
    match_linear,
    match_linear_above,
    rewrite_linear,
    scale_outputs,
)
from vitdeploy.session import Array


class FoldBatchNorm(Pass):
    """Fold a BatchNormalization, which in inference is a factor and a shift for each channel.

        x ─ Conv(W, b) ─ BatchNormalization          ─▶   x ─ Conv(W·f, b·f + s)
        x ─ Conv(W, b) ─ Mul f ─ Add s               ─▶   the same
        x ─ MatMul(W) ─ Reshape (B·N, C) ─ BatchNormalization ─ Reshape (B, N, C)   (LeViT)
                                                     ─▶   x ─ MatMul(W·f) ─ Add s ─ Reshape ─ Reshape
        x ─ BatchNormalization ─ MatMul(W)           ─▶   x ─ MatMul(f·W) ─ Add s·W
        x ─ BatchNormalization ─ Transpose ─ MatMul(W)    (a raised 1×1 convolution; also several)
                                                     ─▶   x ─ Transpose ─ MatMul(f·W) ─ Add s·W

    with f = γ / √(σ² + ε) and s = β - μ·f. Left alone: a product or a norm whose output another node reads too, a norm
    in training mode, and a norm before a larger convolution, because its zero padding would be shifted too.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Fold every such norm."""
        fired = 0
        for node in [n for n in graph.nodes if n.op_type in ("BatchNormalization", "Add") and n.domain == ""]:
            norm = _match_batch_norm(node) if node.op_type == "BatchNormalization" else _match_decomposed(node)
            if norm is not None:
                fired += _fold_into_linear_before(graph, norm) or _fold_into_linear_behind(graph, norm)
        return PassResult(fired)


class _Norm(NamedTuple):
    """x · factor + shift for each channel on axis 1.

    `nodes` are in order; the x of each is its input of that number in `indices`.
    """

    nodes: list[ir.Node]
    indices: list[int]
    factor: Array
    shift: Array


def _match_batch_norm(node: ir.Node) -> _Norm | None:
    tensors = [constant(v) for v in node.inputs[1:5]]
    read_statistics = [v for v in node.outputs[1:] if v.uses() or v.is_graph_output()]
    training = node.attributes.get_int("training_mode", 0)
    if len(tensors) < 4 or None in tensors or read_statistics or training:
        return None
    scale, bias, mean, variance = (array(v).astype(np.float64) for v in node.inputs[1:5])
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return _Norm([node], [0], factor, bias - mean * factor)


def _match_decomposed(add: ir.Node) -> _Norm | None:
    """Match a norm that is written as Mul and Add behind a Conv."""
    for index in (0, 1):
        multiply = producer(add.inputs[index], "Mul")
        if multiply is None or only_consumer(multiply.outputs[0]) is None:
            continue
        for inner in (0, 1):
            conv = match_linear(producer(multiply.inputs[inner], "Conv"))
            if conv is None:
                continue
            rank = len(dims(multiply.outputs[0]) or ())
            factor, shift = (
                broadcast_per_channel(v, rank, conv.axis, conv.channels)
                for v in (multiply.inputs[1 - inner], add.inputs[1 - index])
            )
            if factor is not None and shift is not None:
                return _Norm([multiply, add], [inner, index], factor, shift)
    return None


def _fold_into_linear_before(graph: Graph, norm: _Norm) -> bool:
    linear = match_linear_above(operand(norm.nodes[0], norm.indices[0]), axis=1)
    if linear is None or not scale_outputs(graph, linear, norm.factor, norm.shift):
        return False
    for node, index in zip(norm.nodes, norm.indices, strict=True):
        bypass(graph, node, index)
    return True


def _fold_into_linear_behind(graph: Graph, norm: _Norm) -> bool:
    """Fold a norm where all that read it are linears that sum over its channels."""
    x, output = operand(norm.nodes[0], norm.indices[0]), norm.nodes[-1].outputs[0]
    rank, move = len(dims(x) or ()), only_consumer(output)
    if not is_transpose(move, to_last(rank)):
        move = None
    if (move is None and rank != 2) or output.is_graph_output():
        return False
    moved = output if move is None else move.outputs[0]
    linears = _match_readers(moved)
    changed = [(linear, *_scale_inputs(linear, norm)) for linear in linears]
    if not changed or not all(fits_type(linear, *numbers) for linear, *numbers in changed):
        return False
    if move is not None:
        move.replace_input_with(0, x)
    for linear, weight, bias in changed:
        rewrite_linear(graph, linear, x if move is None else moved, weight, bias)
    graph.model.graph.remove(norm.nodes, safe=True)
    return True


def _match_readers(value: ir.Value) -> list[LinearMatch]:
    """Match the linears that read `value`; none if something else reads it too."""
    nodes = [use.node for use in value.uses() if use.node.op_type == "MatMul" and use.idx == 0]
    linears = [linear for linear in map(match_linear, nodes) if linear is not None]
    return linears if len(linears) == len(value.uses()) and not value.is_graph_output() else []


def _scale_inputs(linear: LinearMatch, norm: _Norm) -> tuple[Array, Array]:
    """Return the weight and the bias of a linear with the norm in it."""
    weight = linear.weight.astype(np.float64)
    return norm.factor[:, None] * weight, norm.shift @ weight + (0.0 if linear.bias is None else linear.bias)
