"""Move activation outliers out of what is quantized, into the weights around it."""

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
from vitdeploy.passes._linear import Linear, linear_ending_at, linear_of, rewrite, scale_outputs
from vitdeploy.passes._moved import MOVING, arrivals, follow
from vitdeploy.session import Array

_LEAST = 1e-5
"""Below it a channel is dead, and says nothing about the factor that it wants."""


class MigrateOutliers(Pass):
    """A few channels a hundred times as large as the rest leave the rest two of 256 steps; so make all alike.

        x ─ LayerNormalization(γ, β) ─ MatMul(W)   ─▶   x ─ LayerNormalization(γ/s, β/s) ─ MatMul(s·W)
        MatMul(V) ─ Attention ─ MatMul(P)          ─▶   MatMul(V/s) ─ Attention ─ MatMul(s·P)

    s = max|X|^α / max|W|^(1-α) for each channel, where W are all the weights that read it (Xiao et al., SmoothQuant,
    2023, equation 4). Both forms are free at run time. Left alone and refused: a norm that something else than a linear
    reads (a residual in a post-norm model), a value that more than one attention reads. The second product of an MLP
    has an activation function before it, which no factor passes.

    Attributes:
        maxima: the largest magnitude of each channel, (K,), of each linear's input by its name, over calibration data.
        alpha: how much of the difficulty goes to the weights, from 0 to 1; one for all, or by the input's name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    maxima: Mapping[str, Any]
    alpha: float | Mapping[str, float]

    def apply(self, graph: Graph) -> PassResult:
        """Migrate wherever it can be done."""
        refused: dict[str, str] = {}
        fired = 0
        for source in _sources(graph, refused):
            factor = self._factor(source)
            if factor is None:
                continue
            source.divide(graph, factor)
            for reader in source.readers:
                columns = factor[reader.channels][:, None]
                linear = linear_of(reader.product)
                assert linear is not None
                rewrite(graph, linear, operand(linear.product, 0), linear.weight * columns, linear.bias)
            fired += 1
        return PassResult(fired, refused)

    def factors(self, graph: Graph) -> dict[str, Array]:
        """By what each linear's input will be divided, (K,), by its name: statistics need not be taken again."""
        found = {}
        for source in _sources(graph, {}):
            factor = self._factor(source)
            if factor is not None:
                found.update({reader.name: factor[reader.channels] for reader in source.readers})
        return found

    def _factor(self, source: _Source) -> Array | None:
        """(channels,) of the source; None when nothing was measured, or nothing shall move."""
        known = [reader for reader in source.readers if reader.name in self.maxima]
        if not known:
            return None
        alpha = self.alpha if isinstance(self.alpha, float) else self.alpha.get(known[0].name)
        if alpha is None:
            return None
        activation, weight = (np.zeros(source.channels) for _ in range(2))
        for reader in known:
            np.maximum.at(activation, reader.channels, np.asarray(self.maxima[reader.name], np.float64))
        for reader in source.readers:
            np.maximum.at(weight, reader.channels, np.abs(reader.weight).max(axis=1).astype(np.float64))
        alive = (activation > _LEAST) & (weight > _LEAST)
        factor = np.ones(source.channels)
        factor[alive] = activation[alive] ** alpha / weight[alive] ** (1 - alpha)
        if alive.any():
            factor[~alive] = np.median(factor[alive])
        return factor


@dataclass(frozen=True)
class _Reader:
    """A linear that reads a source: its K input channels are these channels of the source."""

    product: ir.Node
    weight: Array
    channels: Array

    @property
    def name(self) -> str:
        """Of its input."""
        return operand(self.product, 0).name or ""


@dataclass(frozen=True)
class _Source:
    """What can be divided by a factor for each channel: a LayerNormalization, or the linear that makes the values."""

    node: ir.Node | Linear
    channels: int
    readers: list[_Reader]
    columns: Array | None = None
    """Of the linear: which of its output channels the source's channels are."""

    def divide(self, graph: Graph, factor: Array) -> None:
        if isinstance(self.node, Linear):
            whole = np.ones(self.node.channels)
            whole[self.columns] = 1 / factor
            scale_outputs(graph, self.node, whole)
            return
        for index in (1, 2):
            value = self.node.inputs[index] if index < len(self.node.inputs) else None
            if value is not None:
                numbers = array(value)
                name = f"{self.node.name}/{'scale' if index == 1 else 'bias'}_migrated"
                self.node.replace_input_with(index, graph.initializer((numbers / factor).astype(numbers.dtype), name))


def _sources(graph: Graph, refused: dict[str, str]) -> Iterator[_Source]:
    for norm in [n for n in graph.nodes if n.op_type == "LayerNormalization"]:
        found = _norm(norm)
        if isinstance(found, str):
            refused[norm.name or ""] = found
        else:
            yield found
    for core in attention_cores(graph):
        found = _values(core)
        if isinstance(found, str):
            refused[core.name or ""] = found
        else:
            yield found


def _norm(norm: ir.Node) -> _Source | str:
    scale = constant(norm.inputs[1]) if len(norm.inputs) > 1 else None
    if scale is None or len(scale.shape) != 1 or any(v is not None and constant(v) is None for v in norm.inputs[2:]):
        return "it has no scale for each channel"
    rank = len(dims(norm.outputs[0]) or ())
    try:
        readers = _readers(list(arrivals(norm.outputs[0], rank - 1)))
    except ValueError as error:
        return f"its channels are not known: {error}"
    return readers if isinstance(readers, str) else _Source(norm, scale.size, readers)


def _values(core: ir.Node) -> _Source | str:
    """The linear that makes the values of an attention, and the one that reads what attention makes of them."""
    value = operand(core, 2)
    while (linear := linear_ending_at(value)) is None:
        node = producer(value)
        if node is None or node.op_type not in MOVING or node.domain != "":
            return "its values are no linear's output"
        value = operand(node, 0)
    try:
        seen = list(arrivals(linear.output, linear.axis))
        mine = [numbers for reader, index, numbers in seen if reader is core and index == 2]
        others = [numbers for reader, index, numbers in seen if not (reader is core and index == 2)]
        shape = [1 if n is None and i == 0 else int(n or 0) for i, n in enumerate(dims(core.outputs[0]) or ())]
        columns = np.unique(mine[0]) if len(mine) == 1 else np.zeros(0, int)
        if not columns.size or not all(shape) or any(np.isin(numbers, columns).any() for numbers in others):
            return "something else reads its values too"
        if (mine[0] != mine[0][:1, :, :1, :]).any():
            return "its channels are not the same for each token"
        carried = np.broadcast_to(np.searchsorted(columns, mine[0][:1, :, :1, :]), shape)
        readers = _readers(list(follow(core.outputs[0], carried)))
    except ValueError as error:
        return f"its channels are not known: {error}"
    return readers if isinstance(readers, str) else _Source(linear, len(columns), readers, columns)


def _readers(seen: list[tuple[ir.Node | None, int, Array]]) -> list[_Reader] | str:
    """The linears that read, if nothing else does."""
    readers = []
    for node, index, numbers in seen:
        linear = linear_of(node) if node is not None and node.op_type == "MatMul" and index == 0 else None
        if linear is None:
            return f"{node.name if node is not None else 'the output'} reads it, which is no linear"
        channels = numbers.reshape(-1, numbers.shape[-1])
        if (channels != channels[:1]).any():
            return f"{linear.product.name} reads other channels for each token"
        readers.append(_Reader(linear.product, linear.weight, channels[0]))
    return readers or "nothing reads it"
