"""Fold the scale and bias of a LayerNormalization into the linears that read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, dims, operand
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._channel_readers import ChannelReader, match_readers
from vitdeploy.passes._linear import LinearMatch, fits_type, match_linear, rewrite_linear
from vitdeploy.passes._trace_channels import trace_channels
from vitdeploy.session import Array


class FoldNormAffine(Pass):
    """Fold scale and bias of a LayerNorm into linears behind it that are in float.

        x ─ LayerNormalization(γ, β) ─ MatMul(W) ─ Add b   ─▶   x ─ LayerNormalization(1) ─ MatMul(γ·W) ─ Add (b + β·W)

    OpenVINO 2026.4.1 normalises in one kernel on CPUs, and scales, shifts and rounds in another one. With nothing to
    scale, it rounds in the kernel that normalises. The value between norm and linear gets another name, because it is
    another value. Left alone: a norm that anything else than such linears reads, and linears whose weight another node
    reads too, because both would need a weight of their own.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Fold wherever that is possible."""
        return PassResult(sum(_apply(graph, fold) for fold in _find(graph) if not fold.is_done))

    def list_linears(self, graph: Graph) -> dict[str, list[str]]:
        """Return the products behind each norm that only normalises, or will, by the norm's name."""
        return {fold.norm.name or "": [reader.product.name or "" for reader in fold.readers] for fold in _find(graph)}


@dataclass(frozen=True)
class _Fold:
    norm: ir.Node
    scale: Array
    bias: Array
    readers: list[ChannelReader]

    @property
    def is_done(self) -> bool:
        """Return whether the norm only normalises."""
        return bool((self.scale == 1).all() and not self.bias.any())


def _find(graph: Graph) -> Iterator[_Fold]:
    """Find norms one by one: folding one replaces linears."""
    matches = (_match(node) for node in list(graph.nodes) if node.op_type == "LayerNormalization")
    yield from (fold for fold in matches if fold is not None)


def _match(norm: ir.Node) -> _Fold | None:
    """Match a norm over its last axis with constants for each channel, behind which there are only linears."""
    shape = dims(norm.outputs[0]) or ()
    if norm.domain != "" or not shape or any(output.uses() or output.is_graph_output() for output in norm.outputs[1:]):
        return None
    if norm.attributes.get_int("axis", -1) % len(shape) != len(shape) - 1:
        return None
    scale, *rest = norm.inputs[1:]
    bias = rest[0] if rest else None
    if constant(scale) is None or array(scale).shape != shape[-1:] or (bias is not None and constant(bias) is None):
        return None
    factor, shift = array(scale), np.zeros_like(array(scale)) if bias is None else array(bias)
    if shift.shape != factor.shape:
        return None
    try:
        readers = match_readers(list(trace_channels(norm.outputs[0], len(shape) - 1)))
    except ValueError:
        return None
    if isinstance(readers, str) or any(len(operand(reader.product, 1).uses()) > 1 for reader in readers):
        return None
    return _Fold(norm, factor.astype(np.float64), shift.astype(np.float64), readers)


def _apply(graph: Graph, fold: _Fold) -> bool:
    """Fold. Return False, and change nothing, if the data type of a weight cannot hold the new numbers."""
    linears = [_fold_into(fold, reader) for reader in fold.readers]
    if not all(fits_type(*linear) for linear in linears):
        return False
    for linear, weight, bias in linears:
        rewrite_linear(graph, linear, operand(linear.product, 0), weight, bias)
    norm = fold.norm
    ones = np.ones(len(fold.scale), array(norm.inputs[1]).dtype)
    norm.replace_input_with(1, graph.initializer(ones, f"{norm.name}/ones"))
    norm.resize_inputs(2)
    norm.outputs[0].name = graph.fresh_name(f"{norm.name}/normalised")
    return True


def _fold_into(fold: _Fold, reader: ChannelReader) -> tuple[LinearMatch, Array, Array | None]:
    """Return a linear with its new weight and bias."""
    linear = match_linear(reader.product)
    assert linear is not None
    scale, shift = fold.scale[reader.channels], fold.bias[reader.channels]
    weight = linear.weight * scale[:, None]
    if not shift.any():
        return linear, weight, linear.bias
    bias = shift @ linear.weight.astype(np.float64)
    return linear, weight, bias if linear.bias is None else bias + linear.bias
