"""Bring every attention to one form: the standard `Attention` operator of opset 23, 4-D, with its scale explicit."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.graph.model import Graph, dims, operand
from vitdeploy.graph.recognize import scope
from vitdeploy.graph.structure import CORE
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention_bias import additive, covering, is_idle, one_bias
from vitdeploy.passes._attention_site import Site, match
from vitdeploy.passes._einsum import raise_products


class RaiseAttention(Pass):
    """softmax(q kᵀ · scale + bias) v, however it is written, becomes one node.

        q ─ [Mul s] ─┐
        k ─ [Mul s] ─ Transpose ─ MatMul ─ [Mul|Div s] ─ [Add bias] ─ Softmax ─ MatMul      q, k, v, [bias]
        v ───────────────────────────────────────────────────────────────┘             ─▶      Attention(scale)

    A factor below the bias scales the bias too. Several biases, scores filled with a very low number, and Swin's mask
    over windows between two Reshapes are added up; a factor for each head goes to q. Both products may be an Einsum. A
    constant mask that lets every key pass goes, and another boolean one becomes numbers to add. A softmax that no
    product of two computed tensors feeds, or whose result multiplies nothing computed, is not an attention and is not
    mentioned. One that is an attention but does not fit is left alone and refused with the reason.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Raise every site; sites the exporter already wrote as `Attention` count as raised."""
        refused: dict[str, str] = {}
        for core in [n for n in graph.nodes if n.op_type == "Attention" and n.domain == ""]:
            _settle_mask(graph, core)
        raise_products(graph)
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
    if (bias := one_bias(tape, site.v, site.biases, site.softmax.outputs[0], name)) is not None:
        inputs.append(bias)
    # Named after its module for `_name_sites`, which gives the final name.
    new = tape.op("Attention", inputs, {"scale": site.scale}, name=scope(site.softmax) + CORE)
    graph.replace([site.output], tape, site.output.outputs[0], new)
    RemoveUnusedNodesPass()(graph.model)


def _settle_mask(graph: Graph, core: ir.Node) -> None:
    """Give an attention that the exporter wrote the mask that `one_bias` would, or none if that lets all pass."""
    mask, q, k = core.inputs[3] if len(core.inputs) > 3 else None, dims(core.inputs[0]), dims(core.inputs[1])
    if mask is None or q is None or k is None or len(q) != 4 or len(k) != 4:
        return
    if is_idle(mask, (q[0], q[1], q[2], k[2])):
        core.replace_input_with(3, None)
        return
    tape, name = ir.tape.Tape(), core.name or ""
    whole = covering(tape, additive(tape, mask, operand(core, 0).dtype, name), (q[2], k[2]), name)
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
