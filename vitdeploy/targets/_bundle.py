"""The input and the output of a compiler, and results of what it compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitdeploy.evidence import Audit, EvidenceLevel
from vitdeploy.graph.dialect import Numbers
from vitdeploy.graph.structure import Structure
from vitdeploy.recipe import Batch, SizeRange
from vitdeploy.session import Array, Session


@dataclass(frozen=True)
class Bundle:
    """The input of a compiler: the target-ready graph, and the structure of the model."""

    graph: Path
    structure: Structure
    numbers: Numbers
    batch: Batch
    input_name: str
    input_shape: tuple[int, ...]
    """NCHW at the batch and the image size to optimise for."""
    sizes: SizeRange | None = None
    """The range of image sizes; None for one."""
    output_names: tuple[str, ...] = ()
    """The names of the graph's outputs, in order; empty: those that the engine gives them."""
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Products with weights that stay in float, with the rule: `keep`, the accuracy budget, or a rule with a name."""
    further: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The other inputs by name, with their shapes at the batch to optimise for."""
    further_types: Mapping[str, str] = field(default_factory=dict)
    """The types of those that are not float32, as NumPy names them."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of all inputs, in order."""
        return (self.input_name, *self.further)

    def feed(self, image: Array) -> dict[str, Array]:
        """Return inputs to try a model on: the image, and zeros for the other inputs."""
        zeros = {name: np.zeros(shape, self.further_types.get(name, "float32")) for name, shape in self.further.items()}
        return {self.input_name: image, **zeros}

    @property
    def static(self) -> bool:
        """True if the graph takes one shape only."""
        return self.batch.static and self.sizes is None

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The input's smallest shape, the one to optimise for, and the largest."""
        batch, sizes, (_, planes, *size) = self.batch, self.sizes, self.input_shape
        low, high = (size, size) if sizes is None else (sizes.min, sizes.max)
        return (batch.min, planes, *low), self.input_shape, (batch.max, planes, *high)


@dataclass(frozen=True)
class Compiled:
    """The output of a compiler.

    Attributes:
        folder: where it is.
        runs: the name of the file in `folder` that the backend opens.
        backend: name and version of the compiler.
        audit: what was read back right after compiling; None for a model that was compiled earlier.
        input_names: the names of the first inputs, in order. An engine may call them otherwise.
        output_names: the names of all outputs, in order, likewise; empty: those that the engine gives them.
    """

    folder: Path
    runs: str
    backend: str
    audit: Audit | None = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExternalTimes:
    """Times that the backend's own program measured, in milliseconds per query.

    Attributes:
        name: of the program.
        device_ms: time on the device alone.
        end_to_end_ms: all the time that a caller waits.
    """

    name: str
    device_ms: tuple[float, ...]
    end_to_end_ms: tuple[float, ...]


@dataclass(frozen=True)
class WatchedSession:
    """A session that returns tensors inside the model besides its outputs.

    Attributes:
        session: the session.
        tensors: the requested tensors that it returns.
        evidence: "compiled" if the backend itself runs, "graph" if something else runs the same graph.
        how: what runs, in words, and how it differs from the model without these outputs.
    """

    session: Session
    tensors: frozenset[str]
    evidence: EvidenceLevel
    how: str
