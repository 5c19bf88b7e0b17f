"""Read attention probabilities, softmax(q kᵀ · scale + bias), out of a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.special import softmax

from vitdeploy.graph.dialect import CONTRIB
from vitdeploy.graph.model import Graph
from vitdeploy.graph.structure import CORE, AttentionSite, Structure
from vitdeploy.session import Array

_AFTER_SOFTMAX = 3
"""The `qk_matmul_output_mode` of ONNX's `Attention`-23 in which its fourth output is the result of the softmax."""

# Inputs of com.microsoft.MultiHeadAttention.
_BIAS = 5
_UNUSED_INPUTS = (3, 4, 6, 7)  # projection bias, key padding mask and cached keys: lowering never writes them


@dataclass(frozen=True)
class Tap:
    """The way to read the probabilities of one attention site.

    Attributes:
        site: the attention site.
        tensors: the graph outputs that `with_taps` added for it.
        read: computes the probabilities from the values of these outputs: (sequences, heads, queries, keys), float32.
            The sequences are the windows of all images in the batch, image by image.
    """

    site: AttentionSite
    tensors: tuple[str, ...]
    read: Callable[[Mapping[str, Array]], Array]

    @property
    def count(self) -> int | None:
        """The number of probabilities for one image; None if a size is not known before run time."""
        sizes = (self.site.windows, self.site.heads, self.site.tokens, self.site.key_tokens)
        product = 1
        for size in sizes:
            if size is None:
                return None
            product *= size
        return product


def with_taps(graph: Graph, structure: Structure) -> tuple[Graph, list[Tap], dict[str, str]]:
    """Return a copy of `graph` with outputs for the probabilities of every attention site.

    The graph may be raised or lowered, quantized or not.

        q, k ─ MatMul ─ Softmax ─▶ output            the plain operators of OpenVINO and TensorRT
        q, k, bias ─▶ outputs                        ONNX Runtime's MultiHeadAttention, which has no output for them:
                                                     they are computed again from q, k and bias
        Attention ─ fourth output ─▶ output          the standard operator, where lowering left it alone

    Returns:
        The copy, a tap for each site, and site -> reason for the sites without a tap.
    """
    tapped = Graph(graph.model.clone())
    nodes = {node.name: node for node in tapped.nodes}
    outputs: dict[str, ir.Value] = {}
    taps, missing = [], {}
    for site in structure.attention:
        tap_and_values = next(filter(None, (_make_tap(site, core) for core in _possible_cores(site, nodes))), None)
        if tap_and_values is None:
            missing[site.name] = "the graph has no node that gives its softmax"
            continue
        tap, values = tap_and_values
        taps.append(tap)
        outputs.update(values)
    output_names = {value.name for value in tapped.model.graph.outputs}
    tapped.model.graph.outputs.extend(value for name, value in outputs.items() if name not in output_names)
    return tapped, taps, missing


def _possible_cores(site: AttentionSite, nodes: Mapping[str | None, ir.Node]) -> Iterator[ir.Node]:
    """Yield the nodes that may compute the softmax of a site: lowering keeps the names that raising gave."""
    for name in (f"{site.name}{CORE}/softmax", f"{site.name}{CORE}", *site.nodes):
        if name in nodes:
            yield nodes[name]


def _make_tap(site: AttentionSite, core: ir.Node) -> tuple[Tap, dict[str, ir.Value]] | None:
    if core.op_type == "Softmax" and core.domain == "":
        return _tap_value(site, core.outputs[0])
    if core.op_type == "Attention" and core.domain == "":
        if len(core.outputs) > 3 and core.outputs[3].uses():
            return None  # the model reads the fourth output itself, maybe in another mode
        core.attributes["qk_matmul_output_mode"] = ir.AttrInt64("qk_matmul_output_mode", _AFTER_SOFTMAX)
        core.resize_outputs(4)
        for value in core.outputs[1:3]:
            value.name = value.name if value.uses() or value.is_graph_output() else ""
        core.outputs[3].name = f"{core.name}/probabilities"
        core.outputs[3].type = ir.TensorType(core.outputs[0].dtype or ir.DataType.FLOAT)
        return _tap_value(site, core.outputs[3])
    if core.op_type == "MultiHeadAttention" and core.domain == CONTRIB:
        return _tap_operands(site, core)
    return None


def _tap_value(site: AttentionSite, value: ir.Value) -> tuple[Tap, dict[str, ir.Value]]:
    name = value.name or ""
    return Tap(site, (name,), lambda values: _reshape_to_4d(values[name], site)), {name: value}


def _tap_operands(site: AttentionSite, core: ir.Node) -> tuple[Tap, dict[str, ir.Value]] | None:
    inputs: list[ir.Value | None] = [*core.inputs, *[None] * 8]
    query, keys, bias = inputs[0], inputs[1], inputs[_BIAS]
    scale = core.attributes.get_float("scale", 0.0)
    if query is None or keys is None or not scale or any(inputs[index] is not None for index in _UNUSED_INPUTS):
        return None
    heads = core.attributes.get_int("num_heads", 1)
    values = {value.name or "": value for value in (query, keys, bias) if value is not None}
    constants = {name: v.const_value.numpy() for name, v in values.items() if v.const_value is not None}
    outputs = {name: value for name, value in values.items() if name not in constants}

    def read(output_values: Mapping[str, Array]) -> Array:
        tensors = {**constants, **output_values}
        q, k = (_heads_first(tensors[v.name or ""].astype(np.float32), heads) for v in (query, keys))
        scores = scale * (q @ k.swapaxes(-1, -2))
        if bias is not None:
            scores = scores + tensors[bias.name or ""].astype(np.float32)
        return _reshape_to_4d(softmax(scores, axis=-1), site)

    return Tap(site, tuple(outputs), read), outputs


def _heads_first(operand: Array, heads: int) -> Array:
    """Return an operand as (batch, heads, tokens, size). It may also be (batch, tokens, heads · size)."""
    if operand.ndim == 4:
        return operand
    return np.asarray(operand.reshape(*operand.shape[:2], heads, -1).transpose(0, 2, 1, 3))


def _reshape_to_4d(probabilities: Array, site: AttentionSite) -> Array:
    """Reshape to (sequences, heads, queries, keys). A single head that was split in two is merged again."""
    shape = probabilities.shape
    probabilities = probabilities.astype(np.float32)
    if site.heads and site.tokens and site.key_tokens:
        return probabilities.reshape(-1, site.heads, site.tokens, site.key_tokens)
    return probabilities.reshape((1,) * (4 - len(shape)) + shape if len(shape) < 4 else (-1, *shape[-3:]))
