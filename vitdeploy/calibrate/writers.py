"""Write one way to quantize into a graph: equal writers do the same, so that a search for one serves the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vitdeploy.graph.structure import Linear

if TYPE_CHECKING:
    from vitdeploy.calibrate.search import Choice
    from vitdeploy.graph.model import Graph
    from vitdeploy.quantize.observe import Observed
    from vitdeploy.quantize.qdq import Kind
    from vitdeploy.quantize.weights import WeightStorage


class Writer(Protocol):
    """Quantizes some linears of a graph, in place."""

    def write(self, graph: Graph, observed: Mapping[str, Observed], choice: Choice) -> None:
        """Quantize them, with what was observed of their inputs, in the way that was chosen."""

    def __hash__(self) -> int:
        """Equal writers have one hash."""


@dataclass(frozen=True)
class PairWriter:
    """Q/DQ pairs around the products `nodes`; see `quantize.qdq`."""

    nodes: tuple[str, ...]
    kind: Kind
    largest_weight: int

    def write(self, graph: Graph, observed: Mapping[str, Observed], choice: Choice) -> None:
        """Write the pairs."""
        from vitdeploy.quantize import qdq

        options = qdq.PairOptions(self.kind, self.largest_weight, choice.ranges, choice.correct_bias)
        qdq.write(graph, self.nodes, observed, options)


@dataclass(frozen=True)
class DynamicWriter:
    """ONNX Runtime's dynamic INT8 kernels in place of the products `nodes`; see `quantize.dynamic`."""

    nodes: tuple[str, ...]
    largest_weight: int

    def write(self, graph: Graph, observed: Mapping[str, Observed], choice: Choice) -> None:  # noqa: ARG002
        """Write the kernels; they take ranges from each image."""
        from vitdeploy.quantize import dynamic

        dynamic.write(graph, self.nodes, self.largest_weight)


@dataclass(frozen=True)
class WeightWriter:
    """Weights of the products `nodes` in few bits; see `quantize.weights`."""

    nodes: tuple[str, ...]
    storage: WeightStorage

    def write(self, graph: Graph, observed: Mapping[str, Observed], choice: Choice) -> None:  # noqa: ARG002
        """Write the weights; rounding is compensated on what was observed."""
        from vitdeploy.quantize import weights

        weights.write(graph, self.nodes, self.storage, observed)


def nodes_of(linears: Iterable[Linear]) -> tuple[str, ...]:
    """Return the names of the nodes that compute these linears."""
    return tuple(name for linear in linears for name in linear.nodes)
