"""Bring every attention to one form: the standard `Attention` operator of opset 23, 4-D, with its scale explicit."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.graph.model import Graph, constant, dims, producer, scalar
from vitdeploy.graph.recognize import scope
from vitdeploy.graph.structure import CORE
from vitdeploy.passes import Pass, PassResult


class RaiseAttention(Pass):
    """softmax(q kᵀ · scale + bias) v, however it is written, becomes one node.

        q ─ [Mul s] ─┐
        k ─ [Mul s] ─ Transpose ─ MatMul ─ [Mul|Div s] ─ [Add bias] ─ Softmax ─ MatMul      q, k, v, [bias]
        v ───────────────────────────────────────────────────────────────┘             ─▶      Attention(scale)

    A softmax that no product with q and k feeds, or whose result no product reads, is not an attention and is not
    mentioned. One that is an attention but does not fit is left alone and refused with the reason.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Raise every site; sites the exporter already wrote as `Attention` count as raised."""
        refused: dict[str, str] = {}
        for softmax in [n for n in graph.nodes if n.op_type == "Softmax"]:
            site = _match(softmax)
            if isinstance(site, str):
                refused[softmax.name or ""] = site
            elif site is not None:
                _rewrite(graph, site)
        graph.infer_shapes()
        cores = [n for n in graph.nodes if n.op_type == "Attention" and n.domain == ""]
        _name_sites(cores)
        for core in cores:
            _state_scale(core)
        return PassResult(len(cores), refused)


@dataclass(frozen=True)
class _Site:
    """A matched attention: its operands, and the node whose output the `Attention` replaces."""

    softmax: ir.Node
    output: ir.Node
    q: ir.Value
    k: ir.Value
    k_is_transposed: bool
    v: ir.Value
    scale: float
    bias: ir.Value | None


def _match(softmax: ir.Node) -> _Site | str | None:
    """The site around `softmax`; None if it is no attention; the reason if it is one that does not fit."""
    output = _product_with_v(softmax)
    logits, scale, bias = _above_softmax(softmax)
    if output is None or logits is None:
        return None
    q, k = logits.inputs
    assert q is not None and k is not None
    v = output.inputs[1]
    if any(constant(x) is not None for x in (q, k, v)):
        return None
    rank = len(dims(softmax.outputs[0]) or ())
    axis = softmax.attributes.get_int("axis", -1)
    if rank != 4:
        return f"the scores have rank {rank or 'unknown'}, not (batch, heads, tokens, tokens)"
    if axis not in (-1, rank - 1):
        return f"the softmax runs over axis {axis}, not over the keys"
    if softmax.outputs[0].is_graph_output() or len(softmax.outputs[0].uses()) > 1:
        return "the attention map is read by something else (or returned), which a fused kernel cannot supply"
    q, q_scale = _without_scale(q)
    k, k_scale, transposed = _keys(k)
    assert v is not None
    return _Site(softmax, output, q, k, not transposed, v, scale * q_scale * k_scale, bias)


def _product_with_v(softmax: ir.Node) -> ir.Node | None:
    for use in softmax.outputs[0].uses():
        node, index = use.node, use.idx
        if node.op_type in ("Dropout", "Identity", "Cast"):
            return _product_with_v(node)
        if node.op_type == "MatMul" and index == 0:
            return node
    return None


def _above_softmax(softmax: ir.Node) -> tuple[ir.Node | None, float, ir.Value | None]:
    """Walk up to the product of q and k, through scalar factors and at most one added bias."""
    scale, bias = 1.0, None
    node = producer(softmax.inputs[0])
    while node is not None and node.op_type != "MatMul":
        a, b = (*node.inputs, None)[:2]
        if node.op_type in ("Mul", "Div") and (factor := scalar(b)) is not None:
            # A factor below the bias scales the bias too: then the two do not separate.
            if bias is not None:
                scale *= factor if node.op_type == "Mul" else 1 / factor
                node = producer(a)
                continue
            scale *= factor if node.op_type == "Mul" else 1 / factor
            node = producer(a)
        elif node.op_type == "Add" and bias is None and scale == 1.0:
            inside = [v for v in (a, b) if producer(v, "MatMul", "Mul", "Div") is not None]
            if not inside:
                return None, scale, None
            bias = b if inside[0] is a else a
            node = producer(inside[0])
        else:
            return None, scale, None
    return node, scale, bias


def _without_scale(value: ir.Value) -> tuple[ir.Value, float]:
    node = producer(value, "Mul", "Div")
    if node is None:
        return value, 1.0
    for operand, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        factor = scalar(other)
        if factor is not None and operand is not None and (node.op_type == "Mul" or other is node.inputs[1]):
            return operand, factor if node.op_type == "Mul" else 1 / factor
    return value, 1.0


def _keys(value: ir.Value) -> tuple[ir.Value, float, bool]:
    """k as (batch, heads, tokens, size) if a plain transpose is in sight, else kᵀ as it is; and its scale."""
    value, scale = _without_scale(value)
    node = producer(value, "Transpose", "Reshape")
    if node is not None and node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == (0, 1, 3, 2):
        assert node.inputs[0] is not None
        inner, inner_scale = _without_scale(node.inputs[0])
        return inner, scale * inner_scale, True
    if node is not None and node.op_type == "Reshape" and (folded := _batched_transpose(node)) is not None:
        return folded, scale, True
    return value, scale, False


def _batched_transpose(last: ir.Node) -> ir.Value | None:
    """The dynamo exporter's kᵀ: Reshape to (batch · heads, tokens, size), Transpose (0, 2, 1), Reshape back."""
    middle = producer(last.inputs[0], "Transpose")
    if middle is None or tuple(middle.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    first = producer(middle.inputs[0], "Reshape")
    before, after = (dims(first.inputs[0]) if first else None), dims(last.outputs[0])
    if first is None or before is None or after is None or len(before) != 4 or len(after) != 4:
        return None
    same = before[1] == after[1] and before[2] == after[3] and before[3] == after[2]
    return first.inputs[0] if same else None


def _rewrite(graph: Graph, site: _Site) -> None:
    tape = ir.tape.Tape()
    k = tape.op("Transpose", [site.k], {"perm": [0, 1, 3, 2]}, name=f"{scope(site.softmax)}/transpose_k") if site.k_is_transposed else site.k
    inputs = [site.q, k, site.v] + ([site.bias] if site.bias is not None else [])
    if site.bias is not None:
        _broadcastable(site.bias)
    # Named like the node it replaces: `_name_sites` gives the final name, which must be free by then.
    new = tape.op("Attention", inputs, {"scale": site.scale}, name=scope(site.softmax) + CORE)
    graph.replace([site.output], tape, site.output.outputs[0], new)
    RemoveUnusedNodesPass()(graph.model)


def _broadcastable(bias: ir.Value) -> None:
    """`Attention` wants a bias of rank 2 to 4; a constant of lower rank gains leading ones."""
    tensor = constant(bias)
    if tensor is not None and len(tensor.shape) < 2:
        array = np.atleast_2d(tensor.numpy())
        bias.const_value, bias.shape = ir.tensor(array, name=bias.name), ir.Shape(array.shape)


def _name_sites(cores: list[ir.Node]) -> None:
    """`MODULE/Attention` for each; a module with several attentions numbers them: `MODULE.1/Attention`."""
    taken: Counter[str] = Counter()
    for core in cores:
        module = scope(core) or "attention"
        taken[module] += 1
        core.name = f"{module}{f'.{taken[module] - 1}' if taken[module] > 1 else ''}{CORE}"


def _state_scale(core: ir.Node) -> None:
    """Write the default scale 1/√d out, so that later passes need not know it."""
    shape = dims(core.inputs[0])
    if core.attributes.get("scale") is None and shape is not None and len(shape) == 4 and shape[3]:
        core.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(shape[3]))
