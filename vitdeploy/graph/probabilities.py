"""Attention probabilities, softmax(q kᵀ · scale + bias), read out of a graph that computes them or could."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.dialect import CONTRIB
from vitdeploy.graph.model import Graph
from vitdeploy.graph.structure import CORE, AttentionSite, Structure
from vitdeploy.session import Array

_AFTER_SOFTMAX = 3
"""`qk_matmul_output_mode` of ONNX's `Attention`-23: its fourth output is what softmax gives."""

_BIAS, _KEY_PADDING = 5, 4  # inputs of com.microsoft.MultiHeadAttention
_OTHER_INPUTS = (3, 4, 6, 7)  # its projection bias, key padding mask and cached keys: lowering writes none of them


@dataclass(frozen=True)
class Tap:
    """How to get one site's probabilities: the tensors to ask the graph for, and what to make of them.

    Attributes:
        site: the attention site.
        tensors: graph outputs that `with_taps` has added.
        read: from their values to probabilities, (sequences, heads, queries, keys) float32; sequences are windows of
            the images in the batch, image by image.
    """

    site: AttentionSite
    tensors: tuple[str, ...]
    read: Callable[[Mapping[str, Array]], Array]

    @property
    def count(self) -> int | None:
        """Numbers in one image's map; None where sizes are not known before run time."""
        sizes = (self.site.windows, self.site.heads, self.site.tokens, self.site.key_tokens)
        product = 1
        for size in sizes:
            if size is None:
                return None
            product *= size
        return product


def with_taps(graph: Graph, structure: Structure) -> tuple[Graph, list[Tap], dict[str, str]]:
    """A copy of `graph` that gives every attention site's probabilities as well, raised or lowered, quantized or not.

        q, k ─ MatMul ─ Softmax ─▶ output            the plain operators of OpenVINO and TensorRT
        q, k, bias ─▶ outputs                        ONNX Runtime's MultiHeadAttention keeps them inside: recomputed
        Attention ─ fourth output ─▶ output          the standard operator, where lowering left it

    Returns:
        The copy, a tap for each site, and site -> reason for those that have none.
    """
    tapped = Graph(graph.model.clone())
    nodes = {node.name: node for node in tapped.nodes}
    outputs: dict[str, ir.Value] = {}
    taps, missing = [], {}
    for site in structure.attention:
        tap = next((found for core in _cores(site, nodes) if (found := _tap(site, core)) is not None), None)
        if tap is None:
            missing[site.name] = "its softmax is not in the graph as a node that can be read"
            continue
        made, values = tap
        taps.append(made)
        outputs.update(values)
    present = {value.name for value in tapped.model.graph.outputs}
    tapped.model.graph.outputs.extend(value for name, value in outputs.items() if name not in present)
    return tapped, taps, missing


def _cores(site: AttentionSite, nodes: Mapping[str | None, ir.Node]) -> Iterator[ir.Node]:
    """The nodes that may hold a site's softmax, by name: lowering keeps the names that raising gave."""
    for name in (f"{site.name}{CORE}/softmax", f"{site.name}{CORE}", *site.nodes):
        if name in nodes:
            yield nodes[name]


def _tap(site: AttentionSite, core: ir.Node) -> tuple[Tap, dict[str, ir.Value]] | None:
    if core.op_type == "Softmax" and core.domain == "":
        return _of_value(site, core.outputs[0])
    if core.op_type == "Attention" and core.domain == "":
        if len(core.outputs) > 3 and core.outputs[3].uses():
            return None  # the model reads its scores, in a mode of its own
        core.attributes["qk_matmul_output_mode"] = ir.AttrInt64("qk_matmul_output_mode", _AFTER_SOFTMAX)
        core.resize_outputs(4)
        for value in core.outputs[1:3]:
            value.name = value.name if value.uses() or value.is_graph_output() else ""
        core.outputs[3].name = f"{core.name}/probabilities"
        core.outputs[3].type = ir.TensorType(core.outputs[0].dtype or ir.DataType.FLOAT)
        return _of_value(site, core.outputs[3])
    if core.op_type == "MultiHeadAttention" and core.domain == CONTRIB:
        return _recomputed(site, core)
    return None


def _of_value(site: AttentionSite, value: ir.Value) -> tuple[Tap, dict[str, ir.Value]]:
    name = value.name or ""
    return Tap(site, (name,), lambda found: _four(found[name], site)), {name: value}


def _recomputed(site: AttentionSite, core: ir.Node) -> tuple[Tap, dict[str, ir.Value]] | None:
    inputs: list[ir.Value | None] = [*core.inputs, *[None] * 8]
    query, keys, bias = inputs[0], inputs[1], inputs[_BIAS]
    scale = core.attributes.get_float("scale", 0.0)
    if query is None or keys is None or not scale or any(inputs[index] is not None for index in _OTHER_INPUTS):
        return None
    heads = core.attributes.get_int("num_heads", 1)
    values = {value.name or "": value for value in (query, keys, bias) if value is not None}
    constants = {name: v.const_value.numpy() for name, v in values.items() if v.const_value is not None}
    wanted = {name: value for name, value in values.items() if name not in constants}

    def read(found: Mapping[str, Array]) -> Array:
        tensors = {**constants, **found}
        q, k = (_heads_first(tensors[v.name or ""].astype(np.float32), heads) for v in (query, keys))
        scores = scale * (q @ k.swapaxes(-1, -2))
        if bias is not None:
            scores = scores + tensors[bias.name or ""].astype(np.float32)
        return _four(softmax(scores), site)

    return Tap(site, tuple(wanted), read), wanted


def _heads_first(operand: Array, heads: int) -> Array:
    """(batch, heads, tokens, size) of an operand in that form already, or in (batch, tokens, heads · size)."""
    if operand.ndim == 4:
        return operand
    return np.asarray(operand.reshape(*operand.shape[:2], heads, -1).transpose(0, 2, 1, 3))


def softmax(scores: Array) -> Array:
    """Probabilities over the last axis."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def _four(probabilities: Array, site: AttentionSite) -> Array:
    """(sequences, heads, queries, keys); a single head whose queries were dealt to two is put together again."""
    shape = probabilities.shape
    found = probabilities.astype(np.float32)
    if site.heads and site.tokens and site.key_tokens:
        return found.reshape(-1, site.heads, site.tokens, site.key_tokens)
    return found.reshape((1,) * (4 - len(shape)) + shape) if len(shape) < 4 else found.reshape(-1, *shape[-3:])
