"""Where precision drops, and how: placement in the model's own terms, then one file a number format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from vitdeploy.artifact.manifest import Placement
from vitdeploy.graph.model import Graph
from vitdeploy.session import Array

FEWEST_IMAGES = 16
"""Calibration with fewer is called into question; 32 to 300 are usual."""


@dataclass(frozen=True)
class Quantized:
    """The graph with its precision lowered, what was done, for the manifest, and the migration strength (None: off).

    `placement` says of each site whether it was quantized, and by which rule.
    """

    graph: Graph
    record: Mapping[str, str]
    alpha: float | None = None
    placement: Mapping[str, Placement] = field(default_factory=dict)


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

    def doubts(self) -> list[str]:
        """Why what was learned from these images may not hold for others."""
        if self.synthetic:
            return []
        said = []
        if self.images < FEWEST_IMAGES:
            images = "1 image" if self.images == 1 else f"{self.images} images"
            said.append(f"calibrated on {images} of {self.spec}: 32 or more are usual")
        if all(_plain(batch) for batch in self.batches()):  # stops at the first picture
            said.append(f"every calibration image of {self.spec} is of one plain colour: others may fall out of range")
        return said


def _plain(images: Array) -> bool:
    """Whether each channel of each NCHW image has one value only."""
    return not np.any(images.max(axis=(2, 3)) > images.min(axis=(2, 3)))
