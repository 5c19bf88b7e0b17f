"""Bring every attention to one form: the standard `Attention` operator of opset 23, 4-D, with its scale explicit."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.graph.model import Graph, array, constant, dims
from vitdeploy.graph.recognize import scope
from vitdeploy.graph.structure import CORE
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention_site import Bias, Site, match


class RaiseAttention(Pass):
    """softmax(q kᵀ · scale + bias) v, however it is written, becomes one node.

        q ─ [Mul s] ─┐
        k ─ [Mul s] ─ Transpose ─ MatMul ─ [Mul|Div s] ─ [Add bias] ─ Softmax ─ MatMul      q, k, v, [bias]
        v ───────────────────────────────────────────────────────────────┘             ─▶      Attention(scale)

    A factor below the bias scales the bias too. Several biases, scores filled with a very low number, and Swin's mask
    over windows between two Reshapes are added up; a factor for each head goes to q. A softmax that no product of two
    computed tensors feeds, or whose result multiplies nothing computed, is not an attention and is not mentioned. One
    that is an attention but does not fit is left alone and refused with the reason.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Raise every site; sites the exporter already wrote as `Attention` count as raised."""
        refused: dict[str, str] = {}
        for core in [n for n in graph.nodes if n.op_type == "Attention" and n.domain == ""]:
            _cover_scores(graph, core)
        for softmax in [n for n in graph.nodes if n.op_type == "Softmax"]:
            site = match(softmax)
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


def _rewrite(graph: Graph, site: Site) -> None:
    tape, name = ir.tape.Tape(), site.softmax.name or ""  # unique, where a scope may hold several sites
    k = site.k
    if site.k_is_transposed:
        k = tape.op("Transpose", [k], {"perm": [0, 1, 3, 2]}, name=f"{name}/transpose_k")
    q = site.q
    if site.head_scale is not None:  # (q kᵀ) · s = (q · s) kᵀ, head by head
        q = tape.op("Mul", [q, site.head_scale], name=f"{name}/head_scale")
        q.shape, q.type = site.q.shape, site.q.type
    inputs = [q, k, site.v]
    if site.biases:
        bias = _sum(tape, [_summand(tape, b, f"{name}/bias_{i}") for i, b in enumerate(site.biases)], f"{name}/bias")
        inputs.append(_covering(tape, bias, (dims(site.softmax.outputs[0]) or ())[-2:], name))
    # Named after its module for `_name_sites`, which gives the final name.
    new = tape.op("Attention", inputs, {"scale": site.scale}, name=scope(site.softmax) + CORE)
    graph.replace([site.output], tape, site.output.outputs[0], new)
    RemoveUnusedNodesPass()(graph.model)


def _summand(tape: ir.tape.Tape, bias: Bias, name: str) -> ir.Value:
    """The bias in the scores' own form: 4-D, scaled; a new constant if it was one, because exporters share them."""
    if constant(bias.value) is not None:
        if bias.scale == 1.0 and bias.windows is None and bias.chosen is None:
            return bias.value
        numbers = array(bias.value)
        if bias.chosen is not None:
            numbers = np.where(numbers, *bias.chosen).astype(np.float32)
        if bias.windows is not None:
            batch, windows, _, rows, columns = bias.windows
            mask = np.broadcast_to(numbers, np.broadcast_shapes(numbers.shape, (batch, windows, 1, rows, columns)))
            numbers = mask.reshape(batch * windows, -1, rows, columns)
        return tape.initializer(ir.tensor(numbers * np.array(bias.scale, numbers.dtype), name=name))
    if bias.chosen is not None:
        yes, no = (
            tape.initializer(ir.tensor(np.array(bias.scale * number, np.float32), name=f"{name}/{label}"))
            for label, number in zip(("yes", "no"), bias.chosen, strict=True)
        )
        result = tape.op("Where", [bias.value, yes, no], name=name)
        result.shape, result.dtype = bias.value.shape, ir.DataType.FLOAT
        return result
    if bias.scale == 1.0:
        return bias.value
    factor = tape.initializer(ir.tensor(np.array(bias.scale, np.float32), name=f"{name}/factor"))
    result = tape.op("Mul", [bias.value, factor], name=name)
    result.shape, result.type = bias.value.shape, bias.value.type
    return result


def _sum(tape: ir.tape.Tape, summands: list[ir.Value], name: str) -> ir.Value:
    """One bias of several; constants are added here and now."""
    total, *others = summands
    for number, other in enumerate(others):
        label = f"{name}_sum_{number}"
        if constant(total) is not None and constant(other) is not None:
            total = tape.initializer(ir.tensor(array(total) + array(other), name=label))
            continue
        one, two = dims(total), dims(other)
        result = tape.op("Add", [total, other], name=label)
        result.type = total.type
        if one is not None and two is not None and None not in (*one, *two):
            result.shape = ir.Shape(
                np.broadcast_shapes(tuple(int(n or 1) for n in one), tuple(int(n or 1) for n in two))
            )
        total = result
    return total


def _covering(tape: ir.tape.Tape, mask: ir.Value, scores: tuple[int | None, ...], name: str) -> ir.Value:
    """`mask` with one number for each of the `scores` (queries, keys), where Add would repeat a row or a column.

    `Attention` pads a short last axis with minus infinity instead, and ONNX Runtime refuses a single row.
    """
    shape = dims(mask)
    if shape is None or shape[-2:] == scores or None in scores:
        return mask
    if constant(mask) is not None:
        numbers = array(mask)
        whole = np.broadcast_to(numbers, np.broadcast_shapes(numbers.shape, [int(n or 1) for n in scores])).copy()
        return tape.initializer(ir.tensor(whole, name=f"{name}/mask"))
    covered = tape.initializer(ir.tensor(np.array(scores, np.int64), name=f"{name}/mask_shape"))
    return tape.op("Expand", [mask, covered], name=f"{name}/mask")


def _cover_scores(graph: Graph, core: ir.Node) -> None:
    """Give an attention that the exporter wrote the mask that `_covering` describes."""
    mask, q, k = core.inputs[3] if len(core.inputs) > 3 else None, dims(core.inputs[0]), dims(core.inputs[1])
    if mask is None or q is None or k is None or len(q) != 4 or len(k) != 4:
        return
    tape = ir.tape.Tape()
    whole = _covering(tape, mask, (q[2], k[2]), core.name or "")
    if whole is mask:
        return
    for initializer in tape.initializers:
        graph.model.graph.register_initializer(initializer)
    for node in tape.nodes:
        node.outputs[0].name = f"{node.name}:0"
    graph.model.graph.insert_before(core, tape.nodes)
    core.replace_input_with(3, whole)


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
