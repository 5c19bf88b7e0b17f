"""Write every LayerNorm as one operator, its weight and bias inside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.graph.model import Graph, array, constant, dims, only_consumer, operand
from vitdeploy.graph.recognize import scope
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._layer_norm_core import Core, match
from vitdeploy.passes._naming import unique

_OPSET = 17
"""The first with `LayerNormalization`."""


class RaiseLayerNorm(Pass):
    """(x − mean) / √(variance + ε) · γ + β over the channels, however it is written, becomes one node.

        x ─┬─ ReduceMean ─ Sub ─┬─────────────────────────────────────── Div ─ [Mul γ] ─ [Add β]
           └───────────────┘    └─ Pow 2 ─ ReduceMean ─ Add ε ─ Sqrt ───┘
     ─▶ x ─ LayerNormalization(γ, β)

        x ─ LayerNormalization(1) ─ Mul γ ─ Add β   ─▶   x ─ LayerNormalization(γ, β)

    Casts to float32 for the norm alone go too: the operator computes in float32 whatever it is given. Parallel norms
    of one x, which share all but γ and β once constants are folded, become one node each. Left alone: an RMSNorm,
    which subtracts no mean, and an affine part that is computed. Refused with the reason: a norm over other axes, and
    one whose intermediate result something else reads.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Raise every norm; nothing in a graph below the opset of `LayerNormalization`."""
        if graph.opset < _OPSET:
            return PassResult(0)
        if any(n.op_type == "ReduceMean" for n in graph.nodes):
            graph.infer_shapes()  # the number of channels; folding constants infers node by node, which is less
        fired, refused = 0, {}
        taken = {n.name for n in graph.nodes}
        for node in list(graph.nodes):
            if node.graph is None:
                continue  # it went with a norm before it
            core = _written(node) if node.op_type == "LayerNormalization" else match(node)
            if isinstance(core, str):
                refused[node.name or ""] = core
            elif core is not None:
                fired += _rewrite(graph, core, taken)
        if fired:
            RemoveUnusedNodesPass()(graph.model)  # a Cast before the norm, unless something else reads it
        return PassResult(fired, refused)


@dataclass(frozen=True)
class _Affine:
    """What scales and shifts a normalised value: the nodes in order, and their constants."""

    nodes: list[ir.Node] = field(default_factory=list)
    scale: ir.Value | None = None
    bias: ir.Value | None = None


def _written(node: ir.Node) -> Core | None:
    """A `LayerNormalization` over the last axis that has no bias yet: something may be folded into it."""
    shape, scale = dims(node.inputs[0]), constant(operand(node, 1))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if not shape or not isinstance(shape[-1], int) or node.attributes.get_int("axis", -1) not in (-1, len(shape) - 1):
        return None
    if scale is None or len(node.outputs) > 1 or (bias is not None and (constant(bias) is None or array(bias).any())):
        return None
    trivial = bool((scale.numpy() == 1).all())
    attributes: dict[str, Any] = {name: a.value for name, a in node.attributes.items() if a.value is not None}
    return Core([node], operand(node, 0), node.outputs[0], shape[-1], attributes, None if trivial else node.inputs[1])


def _rewrite(graph: Graph, core: Core, taken: set[str | None]) -> int:
    """Put one node, or one for each affine part, in the core's place; how many."""
    parts = _affine_parts(core)
    if not parts:
        if core.nodes[0].op_type == "LayerNormalization":
            return 0
        parts = [_Affine()]
    taken -= {n.name for n in core.nodes}
    for affine in parts:
        own = core.nodes if affine is parts[-1] else []
        end = affine.nodes[-1] if affine.nodes else core.nodes[0]
        name = unique(scope(end if len(parts) > 1 else core.nodes[0]), "LayerNormalization", taken)
        taken.add(name)
        tape = ir.tape.Tape()
        scale = affine.scale or core.scale
        inputs = [core.x, _vector(tape, scale, core, f"{name}/scale")]
        if affine.bias is not None:
            inputs.append(_vector(tape, affine.bias, core, f"{name}/bias"))
        new = tape.op("LayerNormalization", inputs, core.attributes, name=name)
        output = end.outputs[0] if affine.nodes else core.output
        graph.replace([*reversed(affine.nodes), *own], tape, output, new)
    return len(parts)


def _affine_parts(core: Core) -> list[_Affine]:
    """The constant scale and shift of each reader of the normalised value; none unless every reader is one."""
    if core.output.is_graph_output():
        return []
    parts = [_affine(core, use.node) for use in core.output.uses()]
    return [part for part in parts if part is not None] if None not in parts else []


def _affine(core: Core, node: ir.Node) -> _Affine | None:
    if node.op_type == "Add" and (bias := _other(node, core.output, core)) is not None:
        return _Affine([node], bias=bias)
    if node.op_type != "Mul" or core.scale is not None or (scale := _other(node, core.output, core)) is None:
        return None
    add = only_consumer(node.outputs[0], "Add")
    bias = _other(add, node.outputs[0], core) if add is not None else None
    return _Affine([node], scale) if add is None or bias is None else _Affine([node, add], scale, bias)


def _other(node: ir.Node, value: ir.Value, core: Core) -> ir.Value | None:
    """The other operand than `value`, when it is a constant with one number for each channel."""
    other = next((v for v in node.inputs if v is not value), None)
    tensor = constant(other)
    if tensor is None or tensor.size != core.channels:
        return None
    shape = array(other).shape
    return other if shape[-1:] == (core.channels,) and len(shape) <= len(dims(core.x) or ()) else None


def _vector(tape: ir.tape.Tape, value: ir.Value | None, core: Core, name: str) -> ir.Value:
    """`value` with one axis, as the operator takes it; ones if there is none."""
    if value is not None and array(value).ndim == 1:
        return value
    dtype = core.x.dtype.numpy() if core.x.dtype is not None else np.float32
    numbers = array(value).reshape(-1) if value is not None else np.ones(core.channels, dtype)
    return tape.initializer(ir.tensor(numbers, name=name))
