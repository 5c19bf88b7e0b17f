"""Where precision drops, and how: placement in the model's own terms, then one file a number format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from vitdeploy.artifact.manifest import Placement
from vitdeploy.artifact.quantization import CalibrationData, Quantization
from vitdeploy.graph.model import Graph
from vitdeploy.session import Array

FEWEST_IMAGES = 16
"""Calibration with fewer is called into question; 32 to 300 are usual."""


@dataclass(frozen=True)
class Quantized:
    """A graph with its precision lowered, and for the manifest what was done.

    `record` is None where nothing was. `placement` says of each site whether it was quantized, and by which rule.
    """

    graph: Graph
    record: Quantization | None = None
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

    @cached_property
    def data(self) -> CalibrationData:
        """The record of these images, with the reasons why others may behave differently."""
        return CalibrationData(
            data=self.spec,
            digest=self.digest,
            images=self.images,
            synthetic=self.synthetic,
            doubts=() if self.synthetic else tuple(self._doubts()),
        )

    def _doubts(self) -> Iterator[str]:
        if self.images < FEWEST_IMAGES:
            images = "1 image" if self.images == 1 else f"{self.images} images"
            yield f"calibrated on {images} of {self.spec}: 32 or more are usual"
        if all(_is_plain(batch) for batch in self.batches()):  # stops at the first picture
            yield f"every calibration image of {self.spec} is of one plain colour: others may fall out of range"


def _is_plain(images: Array) -> bool:
    """Return whether each channel of each NCHW image has one value only."""
    return not np.any(images.max(axis=(2, 3)) > images.min(axis=(2, 3)))
