"""Writers of quantized linears. Equal writers share the result of one search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vitdeploy.graph.structure import Linear

if TYPE_CHECKING:
    from vitdeploy.calibrate.choice import Choice
    from vitdeploy.graph.model import Graph
    from vitdeploy.quantize.observe import InputStatistics
    from vitdeploy.quantize.qdq import CodeType
    from vitdeploy.quantize.weights import WeightStorage


class Writer(Protocol):
    """Quantizes some linears of a graph, in place."""

    def write(self, graph: Graph, statistics: Mapping[str, InputStatistics], choice: Choice) -> None:
        """Quantize them as `choice` says. `statistics` are those of their inputs, by name."""

    def __hash__(self) -> int:
        """Return the same hash for equal writers."""


@dataclass(frozen=True)
class PairWriter:
    """Q/DQ pairs around the products `nodes`; see `quantize.qdq`."""

    nodes: tuple[str, ...]
    code_type: CodeType
    largest_weight: int

    def write(self, graph: Graph, statistics: Mapping[str, InputStatistics], choice: Choice) -> None:
        """Write the pairs."""
        from vitdeploy.quantize.qdq import PairOptions, write_pairs

        options = PairOptions(self.code_type, self.largest_weight, choice.ranges, choice.correct_bias)
        write_pairs(graph, self.nodes, statistics, options)


@dataclass(frozen=True)
class DynamicWriter:
    """ONNX Runtime's dynamic INT8 kernels in place of the products `nodes`; see `quantize.dynamic`."""

    nodes: tuple[str, ...]
    largest_weight: int

    def write(self, graph: Graph, statistics: Mapping[str, InputStatistics], choice: Choice) -> None:  # noqa: ARG002
        """Write the kernels, which take ranges from each image."""
        from vitdeploy.quantize.dynamic import write_kernels

        write_kernels(graph, self.nodes, self.largest_weight)


@dataclass(frozen=True)
class WeightWriter:
    """Weights of the products `nodes` in few bits; see `quantize.weights`."""

    nodes: tuple[str, ...]
    storage: WeightStorage

    def write(self, graph: Graph, statistics: Mapping[str, InputStatistics], choice: Choice) -> None:  # noqa: ARG002
        """Write the weights. Rounding errors are compensated where there are statistics."""
        from vitdeploy.quantize.weights import write_weights

        write_weights(graph, self.nodes, self.storage, statistics)


def node_names(linears: Iterable[Linear]) -> tuple[str, ...]:
    """Return the names of the nodes that compute these linears."""
    return tuple(name for linear in linears for name in linear.nodes)
