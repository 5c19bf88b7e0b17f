"""Bring every attention to one form: the standard `Attention` operator of opset 23, 4-D, with its scale explicit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.graph.model import Graph, constant, dims, producer, scalar
from vitdeploy.graph.recognize import scope
from vitdeploy.graph.structure import CORE
from vitdeploy.passes import Pass, PassResult

_PASSED_ON = {"Dropout", "Identity", "Cast"}
"""Between the softmax and the product with v: without effect in inference."""

_ABOVE_SOFTMAX = {
    "Add", "Cast", "Clip", "Div", "Expand", "Identity", "Max", "Min", "Mul", "Reshape", "Squeeze", "Sub", "Tanh",
    "Unsqueeze", "Where",
}  # fmt: skip
"""Between the product of q and k and the softmax, whether or not `Attention` can express it."""


class RaiseAttention(Pass):
    """softmax(q kᵀ · scale + bias) v, however it is written, becomes one node.

        q ─ [Mul s] ─┐
        k ─ [Mul s] ─ Transpose ─ MatMul ─ [Mul|Div s] ─ [Add bias] ─ Softmax ─ MatMul      q, k, v, [bias]
        v ───────────────────────────────────────────────────────────────┘             ─▶      Attention(scale)

    A factor below the bias scales the bias too. A softmax that no product of two computed tensors feeds, or whose
    result multiplies nothing computed, is not an attention and is not mentioned. One that is an attention but does not
    fit is left alone and refused with the reason.
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
    bias_scale: float


@dataclass(frozen=True)
class _Scores:
    """What the softmax reads: product · scale + bias · bias_scale."""

    product: ir.Node
    scale: float
    bias: ir.Value | None
    bias_scale: float


def _match(softmax: ir.Node) -> _Site | str | None:
    """The site around `softmax`; None if it is no attention; the reason if it is one that does not fit."""
    output = _product_with_v(softmax)
    if output is None or constant(output.inputs[1]) is not None or not _products_above(softmax.inputs[0]):
        return None
    rank = len(dims(softmax.outputs[0]) or ())
    axis = softmax.attributes.get_int("axis", -1)
    if rank != 4:
        return f"the scores have rank {rank or 'unknown'}, not (batch, heads, tokens, tokens)"
    if axis not in (-1, rank - 1):
        return f"the softmax runs over axis {axis}, not over the keys"
    if _is_read_elsewhere(softmax, output):
        return "the attention map is read by something else (or returned), which a fused kernel cannot supply"
    scores = _scores(softmax)
    if isinstance(scores, str):
        return scores
    q, k, v = *scores.product.inputs, output.inputs[1]
    assert q is not None and k is not None and v is not None
    q, q_scale = _without_scale(q)
    k, k_scale, transposed = _keys(k)
    if reason := _misfit(q, k, v, scores.bias, softmax):
        return reason
    scale = scores.scale * q_scale * k_scale
    return _Site(softmax, output, q, k, not transposed, v, scale, scores.bias, scores.bias_scale)


def _product_with_v(softmax: ir.Node) -> ir.Node | None:
    for use in softmax.outputs[0].uses():
        node, index = use.node, use.idx
        if node.op_type in _PASSED_ON and (product := _product_with_v(node)) is not None:
            return product
        if node.op_type == "MatMul" and index == 0:
            return node
    return None


def _is_read_elsewhere(softmax: ir.Node, output: ir.Node) -> bool:
    """Whether anything but `output` reads the attention map, at the softmax or behind what passes it on."""
    value = output.inputs[0]
    while value is not None:
        if value.is_graph_output() or len(value.uses()) > 1:
            return True
        node = value.producer()
        value = node.inputs[0] if node is not None and node is not softmax else None
    return False


def _products_above(value: ir.Value | None) -> list[ir.Node]:
    """The products of two computed tensors that reach `value` through operators that shift, scale, mask or reshape."""
    found, pending, seen = [], [value], set()
    while pending:
        node = producer(pending.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op_type == "MatMul" and not any(constant(v) is not None for v in node.inputs):
            found.append(node)
        elif node.op_type in _ABOVE_SOFTMAX:
            pending += node.inputs
    return found


def _scores(softmax: ir.Node) -> _Scores | str:
    """Walk up to the product of q and k, through scalar factors and at most one added bias; or why that fails."""
    scale, bias, bias_scale = 1.0, None, 1.0
    value = softmax.inputs[0]
    while (node := producer(value)) is not None and node.op_type != "MatMul":
        assert value is not None
        inside, factor = _without_scale(value)
        if inside is not value:
            scale *= factor
        elif node.op_type == "Add" and bias is None:
            summands = [v for v in node.inputs if _products_above(v)]
            if len(summands) != 1 or summands[0] is None:
                return "the softmax reads a sum of several products"
            inside = summands[0]
            bias = node.inputs[1] if inside is node.inputs[0] else node.inputs[0]
            bias_scale = scale
        else:
            again = "a second " if node.op_type == "Add" else ""
            return f"{again}{node.op_type} stands between the product of q and k and the softmax"
        value = inside
    assert node is not None
    return _Scores(node, scale, bias, bias_scale)


def _misfit(q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value | None, softmax: ir.Node) -> str | None:
    """Why `Attention` cannot take these operands, or None: MatMul and Add broadcast more freely."""
    shapes = [dims(x) for x in (q, k, v)]
    if any(s is None or len(s) != 4 for s in shapes):
        return "q, k and v are not all (batch, heads, tokens, head size)"
    for sizes in list(zip(*(s for s in shapes if s is not None), strict=True))[:2]:
        if len(set(sizes) - {None}) > 1:
            return "q, k and v do not have the same batch and heads"
    if bias is None:
        return None
    bias_shape, keys = dims(bias), (dims(softmax.outputs[0]) or (None,))[-1]
    if bias_shape is None or len(bias_shape) > 4:
        return "the rank of the bias is unknown or above 4"
    # `Attention` pads a short mask with minus infinity where Add would repeat it.
    if not bias_shape or (bias_shape[-1] == 1 and keys != 1):
        return "the bias has one number for all keys"
    return None


def _without_scale(value: ir.Value) -> tuple[ir.Value, float]:
    node = producer(value, "Mul", "Div")
    if node is None:
        return value, 1.0
    for operand, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        factor = scalar(other)
        if factor and operand is not None and (node.op_type == "Mul" or other is node.inputs[1]):
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
    tape, name = ir.tape.Tape(), scope(site.softmax) + CORE
    k = site.k
    if site.k_is_transposed:
        k = tape.op("Transpose", [k], {"perm": [0, 1, 3, 2]}, name=f"{name}/transpose_k")
    inputs = [site.q, k, site.v]
    if site.bias is not None:
        inputs.append(_mask(tape, site.bias, site.bias_scale, name))
    # `_name_sites` gives the final name, which must be free by then.
    new = tape.op("Attention", inputs, {"scale": site.scale}, name=name)
    graph.replace([site.output], tape, site.output.outputs[0], new)
    RemoveUnusedNodesPass()(graph.model)


def _mask(tape: ir.tape.Tape, bias: ir.Value, scale: float, name: str) -> ir.Value:
    """`bias · scale` with the rank of 2 or more that `Attention` wants; a constant, if it was one."""
    lacking = max(0, 2 - len(dims(bias) or ()))
    if scale == 1.0 and not lacking:
        return bias
    tensor = constant(bias)
    if tensor is not None:  # exporters share equal constants between nodes: the changed one is new
        array = np.atleast_2d(tensor.numpy()) * np.array(scale, tensor.numpy().dtype)
        return tape.initializer(ir.tensor(array, name=f"{name}/bias_scaled"))
    if lacking:
        axes = tape.initializer(ir.tensor(np.arange(lacking), name=f"{name}/bias_axes"))
        bias = tape.op("Unsqueeze", [bias, axes], name=f"{name}/bias_unsqueezed")
    if scale != 1.0:
        factor = tape.initializer(ir.tensor(np.array(scale, np.float32), name=f"{name}/bias_factor"))
        bias = tape.op("Mul", [bias, factor], name=f"{name}/bias_scaled")
    return bias


def _name_sites(cores: list[ir.Node]) -> None:
    """`MODULE/Attention` for each; a module with several attentions numbers them: `MODULE.1/Attention`."""
    taken: set[str] = set()
    for core in cores:
        module = name = scope(core) or "attention"
        number = 0
        while name in taken:
            number += 1
            name = f"{module}.{number}"
        taken.add(name)
        core.name = name + CORE


def _state_scale(core: ir.Node) -> None:
    """Write the default scale 1/√d out, so that later passes need not know it."""
    shape = dims(core.inputs[0])
    if core.attributes.get("scale") is None and shape is not None and len(shape) == 4 and shape[3]:
        core.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(shape[3]))
