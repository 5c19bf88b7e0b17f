"""Where precision drops, and how: placement in the model's own terms, then one file a number format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vitdeploy.graph.model import Graph
from vitdeploy.session import Array


@dataclass(frozen=True)
class Quantized:
    """The graph with its precision lowered, what was done, for the manifest, and the migration strength (None: off)."""

    graph: Graph
    record: Mapping[str, str]
    alpha: float | None = None


@dataclass(frozen=True)
class Calibration:
    """Images that ranges are taken from.

    `batches` streams full NCHW batches anew at each call, in the form that the graph takes; `count` is their number.
    `synthetic`: no data was given, and they are made up. That shows overflow that any image causes, and no more.
    """

    batches: Callable[[], Iterable[Array]]
    count: int
    images: int
    spec: str
    digest: str
    synthetic: bool = False

    @property
    def described(self) -> str:
        """What the images are, for the manifest."""
        if self.synthetic:
            return f"{self.images} synthetic images only: give --calibration to check on real data"
        return f"{self.images} calibration images ({self.spec})"
