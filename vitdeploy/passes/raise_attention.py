"""Bring every attention to one form: the standard `Attention` operator of opset 23, in 4-D, with an explicit scale."""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.graph.model import Graph, dims, operand
from vitdeploy.graph.recognize import scope
from vitdeploy.graph.softmaxes import explain_softmax, find_softmaxes
from vitdeploy.graph.structure import CORE
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention import attention_cores, broadcasts
from vitdeploy.passes._attention_bias import broadcast_mask, is_idle, make_additive, merge_biases
from vitdeploy.passes._attention_form import FormWriter
from vitdeploy.passes._attention_site import AttentionMatch, match_attention
from vitdeploy.passes._einsum import raise_products


class RaiseAttention(Pass):
    """Replace softmax(q kᵀ · scale + bias) v, in every form that exporters write, by one node.

        q ─ [Mul s] ─┐
        k ─ [Mul s] ─ Transpose ─ MatMul ─ [Mul|Div s] ─ [Add bias] ─ Softmax ─ MatMul      q, k, v, [bias]
        v ───────────────────────────────────────────────────────────────┘             ─▶      Attention(scale)

    The scores may have any rank: the axes in front of the tokens become batch and heads (`Form`). Everything may be
    transposed, as in (v pᵀ) of channels-first models. All heads may share one of keys and values. A factor behind the
    bias scales the bias too. Several biases are added up to one. A bias can also be scores that are filled with a very
    low number, and it can be added in another view of the scores, as Swin's window mask. A factor for each head moves
    to q.
    Both products may be an Einsum. A constant mask that lets every key pass is removed. Any other constant boolean mask
    becomes numbers to add.

    A softmax is an attention if a product of two computed tensors feeds it and its result is multiplied by a computed
    tensor, with whatever operators between them: see `vitdeploy.graph.softmaxes`. Any other softmax is left alone. An
    attention that `Attention` cannot express is left alone and refused with the reason, and so is the attention
    operator of another tool.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Raise every attention. Those that the exporter wrote as `Attention` count as raised."""
        refused: dict[str, str] = {}
        for core in attention_cores(graph):
            _normalize_mask(graph, core)
        raise_products(graph)
        for softmax in [n for n in graph.nodes if n.op_type == "Softmax"]:
            match = match_attention(softmax)
            if isinstance(match, str):
                refused[softmax.name or ""] = match
            elif match is not None:
                _rewrite(graph, match)
        graph.infer_shapes()
        for softmax_found in find_softmaxes(graph):
            name = softmax_found.node.name or ""
            if name not in refused and (finding := explain_softmax(softmax_found)) is not None and finding.certain:
                refused[name] = finding.reason
        refused |= {node.name or "": _explain_foreign(node) for node in graph.nodes if _is_foreign(node)}
        cores = attention_cores(graph)
        _name_sites(cores)
        for core in cores:
            _set_scale(core)
        return PassResult(len(cores), refused)


def _is_foreign(node: ir.Node) -> bool:
    return node.domain != "" and "Attention" in node.op_type


def _explain_foreign(node: ir.Node) -> str:
    return f"it is {node.domain}.{node.op_type}, an operator of another tool, and stays as it is"


def _rewrite(graph: Graph, match: AttentionMatch) -> None:
    tape, name = ir.tape.Tape(), match.softmax.name or ""  # unique, unlike the scope, which may hold several sites
    scores, output = match.scores, match.output.outputs[0]
    writer = FormWriter(tape, scores.form, name)
    q = writer.bring(match.q.value, scores.lead, "q", is_transposed=match.q.is_transposed)
    if match.head_scale is not None:  # (q kᵀ) · s = (q · s) kᵀ, head by head
        one = (1, 1)
        factor = writer.bring_summand(match.head_scale, (*scores.lead, *one), scores.lead, one, "head_scale")
        scaled = tape.op("Mul", [q, factor], name=f"{name}/head_scale")
        scaled.shape, scaled.type = q.shape, q.type
        q = scaled
    lead, value_lead = scores.lead, match.value_lead
    if match.has_one_key_head:
        writer = FormWriter(tape, replace(scores.form, heads=1), name)
        lead = value_lead = (lead[0], 1)
    k = writer.bring(match.k.value, lead, "k", is_transposed=match.k.is_transposed)
    v = writer.bring(match.v.value, value_lead, "v", is_transposed=match.v.is_transposed)
    inputs = [q, k, v]
    if (bias := merge_biases(tape, v, match.biases, scores, name)) is not None:
        inputs.append(bias)
    # Named after its module for `_name_sites`, which gives the final name.
    core = tape.op("Attention", inputs, {"scale": match.scale}, name=scope(match.softmax) + CORE)
    core.type = output.type
    shape = dims(output) or ()
    core.shape = ir.Shape([*scores.form.sizes, *(shape[:-3:-1] if match.is_output_transposed else shape[-2:])])
    writer = FormWriter(tape, scores.form, name)
    result = writer.bring_back(core, value_lead, shape, is_transposed=match.is_output_transposed)
    graph.replace([match.output], tape, output, result)
    RemoveUnusedNodesPass()(graph.model)


def _normalize_mask(graph: Graph, core: ir.Node) -> None:
    """Bring the mask of an exporter's `Attention` to the form that `merge_biases` gives; remove it if it is idle.

    Left alone: a mask beside cached keys, which its sizes include, and one that does not broadcast to the scores.
    """
    mask, q, k = core.inputs[3] if len(core.inputs) > 3 else None, dims(core.inputs[0]), dims(core.inputs[1])
    if mask is None or q is None or k is None or len(q) != 4 or len(k) != 4:
        return
    if any(core.inputs[4:]) or not broadcasts(dims(mask), (q[2], k[2])):
        return
    if is_idle(mask, (q[0], q[1], q[2], k[2])):
        core.replace_input_with(3, None)
        return
    tape, name = ir.tape.Tape(), core.name or ""
    numbers = make_additive(tape, mask, operand(core, 0).dtype, name)
    new_mask = broadcast_mask(tape, numbers, (q[2], k[2]), name)
    if new_mask is mask:
        return
    graph.insert_before(core, tape)
    core.replace_input_with(3, new_mask)


def _name_sites(cores: list[ir.Node]) -> None:
    """Name each attention `MODULE/Attention`, and further ones of the same module `MODULE.1/Attention` and so on."""
    used_names: set[str] = set()
    for core in cores:
        module = name = scope(core) or "attention"
        number = 0
        while name in used_names:
            number += 1
            name = f"{module}.{number}"
        used_names.add(name)
        core.name = name + CORE


def _set_scale(core: ir.Node) -> None:
    """Write out the default scale 1/√d, so that later passes need not compute it."""
    shape = dims(core.inputs[0])
    if core.attributes.get("scale") is None and shape is not None and len(shape) == 4 and shape[3]:
        core.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(shape[3]))
