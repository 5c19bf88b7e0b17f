"""Move activation outliers into the weights before and behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import ConfigDict

from vitdeploy.graph.model import Graph, array, constant, dims, operand, producer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention import attention_cores
from vitdeploy.passes._channel_readers import ChannelReader, match_readers
from vitdeploy.passes._linear import LinearMatch, match_linear, match_linear_ending_at, rewrite_linear, scale_outputs
from vitdeploy.passes._trace_channels import MOVING, trace, trace_channels
from vitdeploy.session import Array

_DEAD_BELOW = 1e-5
"""A channel whose magnitudes stay below this is dead: no factor can be computed from them."""


class MigrateOutliers(Pass):
    """Divide activation channels by a factor each, so that all have magnitudes of the same order.

        x ─ LayerNormalization(γ, β) ─ MatMul(W)   ─▶   x ─ LayerNormalization(γ/s, β/s) ─ MatMul(s·W)
        MatMul(V) ─ Attention ─ MatMul(P)          ─▶   MatMul(V/s) ─ Attention ─ MatMul(s·P)

    If a few channels are a hundred times as large as the rest, the rest have two of the 256 quantization steps. The
    factor is s = max|X|^α / max|W|^(1-α) for each channel, where W are all the weights that read it (Xiao et al.,
    SmoothQuant, 2023, equation 4). Both forms cost nothing at run time. Left alone and refused: a norm that anything
    else than linears reads (a residual in a post-norm model), and values that more than one attention reads. The input
    of an MLP's second linear cannot be migrated: a factor cannot move through the activation function before it.

    Attributes:
        maxima: the largest magnitude of each channel over the calibration data, (K,), by the name of a linear's input.
        alpha: the share of the outliers that goes to the weights, from 0 to 1: one for all, or by the input's name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    maxima: Mapping[str, Any]
    alpha: float | Mapping[str, float]

    def apply(self, graph: Graph) -> PassResult:
        """Migrate wherever that is possible."""
        refused: dict[str, str] = {}
        fired = 0
        for source in _find_sources(graph, refused):
            factor = self._factor(source)
            if factor is None:
                continue
            source.divide(graph, factor)
            for reader in source.readers:
                columns = factor[reader.channels][:, None]
                linear = match_linear(reader.product)
                assert linear is not None
                rewrite_linear(graph, linear, operand(linear.product, 0), linear.weight * columns, linear.bias)
            fired += 1
        return PassResult(fired, refused)

    def factors(self, graph: Graph) -> dict[str, Array]:
        """Return the divisors, (K,), by the name of a linear's input.

        Calibration statistics can be divided by them, instead of being collected again.
        """
        factors = {}
        for source in _find_sources(graph, {}):
            factor = self._factor(source)
            if factor is not None:
                factors.update({reader.name: factor[reader.channels] for reader in source.readers})
        return factors

    def _factor(self, source: _Source) -> Array | None:
        """Return s, (channels,) of the source; None without calibration data or without an alpha."""
        measured = [reader for reader in source.readers if reader.name in self.maxima]
        if not measured:
            return None
        alpha = self.alpha if isinstance(self.alpha, float) else self.alpha.get(measured[0].name)
        if alpha is None:
            return None
        activation, weight = (np.zeros(source.channels) for _ in range(2))
        for reader in measured:
            np.maximum.at(activation, reader.channels, np.asarray(self.maxima[reader.name], np.float64))
        for reader in source.readers:
            np.maximum.at(weight, reader.channels, np.abs(reader.weight).max(axis=1).astype(np.float64))
        alive = (activation > _DEAD_BELOW) & (weight > _DEAD_BELOW)
        factor = np.ones(source.channels)
        factor[alive] = activation[alive] ** alpha / weight[alive] ** (1 - alpha)
        if alive.any():
            factor[~alive] = np.median(factor[alive])
        return factor


@dataclass(frozen=True)
class _Source:
    """A node whose channels can be divided by factors: a LayerNormalization, or the linear that computes the values."""

    node: ir.Node | LinearMatch
    channels: int
    readers: list[ChannelReader]
    columns: Array | None = None
    """For a linear: the output channels that are the channels of the source."""

    def divide(self, graph: Graph, factor: Array) -> None:
        if isinstance(self.node, LinearMatch):
            factors = np.ones(self.node.channels)
            factors[self.columns] = 1 / factor
            scale_outputs(graph, self.node, factors)
            return
        for index in (1, 2):
            value = self.node.inputs[index] if index < len(self.node.inputs) else None
            if value is not None:
                numbers = array(value)
                name = f"{self.node.name}/{'scale' if index == 1 else 'bias'}_migrated"
                self.node.replace_input_with(index, graph.initializer((numbers / factor).astype(numbers.dtype), name))


def _find_sources(graph: Graph, refused: dict[str, str]) -> Iterator[_Source]:
    """Find sources one by one: migrating one replaces linears that the next may have. Write refusals to `refused`."""
    for norm in [n for n in graph.nodes if n.op_type == "LayerNormalization"]:
        source = _match_norm(norm)
        if isinstance(source, str):
            refused[norm.name or ""] = source
        else:
            yield source
    for core in attention_cores(graph):
        source = _match_values(core)
        if isinstance(source, str):
            refused[core.name or ""] = source
        else:
            yield source


def _match_norm(norm: ir.Node) -> _Source | str:
    scale, shape = constant(norm.inputs[1]) if len(norm.inputs) > 1 else None, dims(norm.outputs[0]) or ()
    if (
        scale is None
        or tuple(scale.shape) != shape[-1:]
        or any(v is not None and constant(v) is None for v in norm.inputs[2:])
    ):
        return "it has no constant scale for each channel"
    try:
        readers = match_readers(list(trace_channels(norm.outputs[0], len(shape) - 1)))
    except ValueError as error:
        return f"its channels are not known: {error}"
    return readers if isinstance(readers, str) else _Source(norm, scale.size, readers)


def _match_values(core: ir.Node) -> _Source | str:
    """Match the linear that computes the values of an attention, and the linear behind the attention."""
    value = operand(core, 2)
    while (linear := match_linear_ending_at(value)) is None:
        node = producer(value)
        if node is None or node.op_type not in MOVING or node.domain != "":
            return "its values are not the output of a linear"
        value = operand(node, 0)
    try:
        arrivals = list(trace_channels(linear.output, linear.axis))
        values = [channels for reader, index, channels in arrivals if reader is core and index == 2]
        others = [channels for reader, index, channels in arrivals if not (reader is core and index == 2)]
        shape = [1 if n is None and i == 0 else int(n or 0) for i, n in enumerate(dims(core.outputs[0]) or ())]
        columns = np.unique(values[0]) if len(values) == 1 else np.zeros(0, int)
        if not columns.size or not all(shape) or any(np.isin(channels, columns).any() for channels in others):
            return "another node reads its values too"
        first_token = values[0][:1, :, :1, :]
        if (values[0] != first_token).any():
            return "its channels are not the same for each token"
        output_channels = np.broadcast_to(np.searchsorted(columns, first_token), shape)
        readers = match_readers(list(trace(core.outputs[0], output_channels)))
    except ValueError as error:
        return f"its channels are not known: {error}"
    return readers if isinstance(readers, str) else _Source(linear, len(columns), readers, columns)
