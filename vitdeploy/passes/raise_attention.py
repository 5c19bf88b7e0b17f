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
from vitdeploy.passes._attention_site import Site, match


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
    inputs = [site.q, k, site.v]
    if site.bias is not None:
        bias = _scaled(tape, site.bias, site.bias_scale, name)
        inputs.append(_covering(tape, bias, (dims(site.softmax.outputs[0]) or ())[-2:], name))
    # Named after its module for `_name_sites`, which gives the final name.
    new = tape.op("Attention", inputs, {"scale": site.scale}, name=scope(site.softmax) + CORE)
    graph.replace([site.output], tape, site.output.outputs[0], new)
    RemoveUnusedNodesPass()(graph.model)


def _scaled(tape: ir.tape.Tape, bias: ir.Value, scale: float, name: str) -> ir.Value:
    """`bias · scale`; a new constant if it was one, because exporters share equal constants between nodes."""
    if scale == 1.0:
        return bias
    if constant(bias) is not None:
        numbers = array(bias)
        return tape.initializer(ir.tensor(numbers * np.array(scale, numbers.dtype), name=f"{name}/bias_scaled"))
    factor = tape.initializer(ir.tensor(np.array(scale, np.float32), name=f"{name}/bias_factor"))
    result = tape.op("Mul", [bias, factor], name=f"{name}/bias_scaled")
    result.shape, result.type = bias.shape, bias.type
    return result


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
