"""Replace every LayerNorm by one operator, its weight and bias included."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.graph.model import Graph, array, constant, dims, only_consumer, operand
from vitdeploy.graph.recognize import scope
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._layer_norm_core import NormMatch, match_norm
from vitdeploy.passes._naming import unique_name

_OPSET = 17
"""The first opset with `LayerNormalization`."""


class RaiseLayerNorm(Pass):
    """Replace (x − mean) / √(variance + ε) · γ + β over the channels by one node.

        x ─┬─ ReduceMean ─ Sub ─┬─────────────────────────────────────── Div ─ [Mul γ] ─ [Add β]
           └───────────────┘    └─ Pow 2 ─ ReduceMean ─ Add ε ─ Sqrt ───┘
     ─▶ x ─ LayerNormalization(γ, β)

        x ─ LayerNormalization(1) ─ Mul γ ─ Add β   ─▶   x ─ LayerNormalization(γ, β)

    Casts to float32 around the norm are removed too, because the operator always computes in float32. Parallel norms of
    one x, which share everything but γ and β once constants are folded, become one node each. Left alone: an RMSNorm,
    which subtracts no mean, and a γ or β that is computed. Refused with the reason: a norm over other axes, and a norm
    whose intermediate result another node reads.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Raise every norm. A graph below the opset of `LayerNormalization` is left alone."""
        if graph.opset < _OPSET:
            return PassResult(0)
        if any(n.op_type == "ReduceMean" for n in graph.nodes):
            graph.infer_shapes()  # for the number of channels: folding constants infers less
        fired, refused = 0, {}
        used_names = {n.name for n in graph.nodes}
        for node in list(graph.nodes):
            if node.graph is None:
                continue  # it was removed with a norm before it
            norm = _match_operator(node) if node.op_type == "LayerNormalization" else match_norm(node)
            if isinstance(norm, str):
                refused[node.name or ""] = norm
            elif norm is not None:
                fired += _rewrite(graph, norm, used_names)
        if fired:
            RemoveUnusedNodesPass()(graph.model)  # a Cast before the norm, unless another node reads it
        return PassResult(fired, refused)


@dataclass(frozen=True)
class _Affine:
    """The Mul and Add behind a normalised value, in order, and their constants."""

    nodes: list[ir.Node] = field(default_factory=list)
    scale: ir.Value | None = None
    bias: ir.Value | None = None


def _match_operator(node: ir.Node) -> NormMatch | None:
    """Match a `LayerNormalization` over the last axis without a bias, so that more can be folded into it."""
    shape, scale = dims(node.inputs[0]), constant(operand(node, 1))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if not shape or not isinstance(shape[-1], int) or node.attributes.get_int("axis", -1) not in (-1, len(shape) - 1):
        return None
    if scale is None or len(node.outputs) > 1 or (bias is not None and (constant(bias) is None or array(bias).any())):
        return None
    new_scale = None if bool((scale.numpy() == 1).all()) else node.inputs[1]
    attributes: dict[str, Any] = {name: a.value for name, a in node.attributes.items() if a.value is not None}
    return NormMatch([node], operand(node, 0), node.outputs[0], shape[-1], attributes, new_scale)


def _rewrite(graph: Graph, norm: NormMatch, used_names: set[str | None]) -> int:
    """Replace the norm by one node, or by one for each of its affine parts. Return how many there are."""
    parts = _match_affine_parts(norm)
    if not parts:
        if norm.nodes[0].op_type == "LayerNormalization":
            return 0
        parts = [_Affine()]
    used_names -= {n.name for n in norm.nodes}
    for affine in parts:
        norm_nodes = norm.nodes if affine is parts[-1] else []  # the other parts still read them
        end = affine.nodes[-1] if affine.nodes else norm.nodes[0]
        name = unique_name(scope(end if len(parts) > 1 else norm.nodes[0]), "LayerNormalization", used_names)
        used_names.add(name)
        tape = ir.tape.Tape()
        scale = affine.scale or norm.scale
        inputs = [norm.x, _make_vector(tape, scale, norm, f"{name}/scale")]
        if affine.bias is not None:
            inputs.append(_make_vector(tape, affine.bias, norm, f"{name}/bias"))
        new = tape.op("LayerNormalization", inputs, norm.attributes, name=name)
        output = end.outputs[0] if affine.nodes else norm.output
        graph.replace([*reversed(affine.nodes), *norm_nodes], tape, output, new)
    return len(parts)


def _match_affine_parts(norm: NormMatch) -> list[_Affine]:
    """Match the constant scale and shift that each reader of the normalised value applies, or none at all."""
    uses = norm.output.uses()
    if norm.output.is_graph_output() or any(use.node.graph is not norm.output.graph for use in uses):
        return []
    parts = [_match_affine(norm, use.node) for use in uses]
    return [part for part in parts if part is not None] if None not in parts else []


def _match_affine(norm: NormMatch, node: ir.Node) -> _Affine | None:
    if node.op_type == "Add" and (bias := _channel_operand(node, norm.output, norm)) is not None:
        return _Affine([node], bias=bias)
    if node.op_type != "Mul" or norm.scale is not None or (scale := _channel_operand(node, norm.output, norm)) is None:
        return None
    add = only_consumer(node.outputs[0], "Add")
    bias = _channel_operand(add, node.outputs[0], norm) if add is not None else None
    return _Affine([node], scale) if add is None or bias is None else _Affine([node, add], scale, bias)


def _channel_operand(node: ir.Node, value: ir.Value, norm: NormMatch) -> ir.Value | None:
    """Return the operand beside `value` if it is a constant with one number for each channel."""
    other = next((v for v in node.inputs if v is not value), None)
    tensor = constant(other)
    if tensor is None or tensor.size != norm.channels:
        return None
    shape = array(other).shape
    return other if shape[-1:] == (norm.channels,) and len(shape) <= len(dims(norm.x) or ()) else None


def _make_vector(tape: ir.tape.Tape, value: ir.Value | None, norm: NormMatch, name: str) -> ir.Value:
    """Return `value` with the one axis that the operator needs, or ones without a value."""
    if value is not None and array(value).ndim == 1:
        return value
    dtype = norm.x.dtype.numpy() if norm.x.dtype is not None else np.float32
    numbers = array(value).reshape(-1) if value is not None else np.ones(norm.channels, dtype)
    return tape.initializer(ir.tensor(numbers, name=name))
