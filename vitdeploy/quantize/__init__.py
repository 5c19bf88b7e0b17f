"""Lower the precision of a graph: choose what is quantized, then write one number format per file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from vitdeploy.artifact.manifest import Placement
from vitdeploy.artifact.quantization import CalibrationData, Quantization, encode_digests
from vitdeploy.graph.model import Graph
from vitdeploy.session import Array, Inputs, images_of

FEWEST_IMAGES = 16
"""Calibration on fewer images is reported as a doubt. 32 to 300 are usual."""


@dataclass(frozen=True)
class Quantized:
    """A graph in lower precision, and the manifest's record of it.

    Attributes:
        graph: the graph.
        record: what quantization did; None where nothing was changed.
        placement: the precision of each site, and the rule that decided it.
    """

    graph: Graph
    record: Quantization | None = None
    placement: Mapping[str, Placement] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """The images from which activation ranges are taken.

    Attributes:
        batches: each call streams all batches again: full NCHW batches, in the form that the graph takes; or all inputs
            by name, if it takes more than images.
        count: the number of batches.
        images: the number of images.
        spec: the data as the user named it.
        digest: the hash of their contents.
        synthetic: whether the images are made up because no data was given. They show only overflow that any image
            causes.
        digests: returns the digest of each image, see `data.dataset.digest_image`.
    """

    batches: Callable[[], Iterable[Inputs]]
    count: int
    images: int
    spec: str
    digest: str
    synthetic: bool = False
    digests: Callable[[], Iterable[int]] = tuple

    @cached_property
    def data(self) -> CalibrationData:
        """The record of these images, with reasons why other images may behave differently."""
        return CalibrationData(
            data=self.spec,
            digest=self.digest,
            images=self.images,
            synthetic=self.synthetic,
            doubts=() if self.synthetic else tuple(self._find_doubts()),
            samples=encode_digests(self.digests()),
        )

    def _find_doubts(self) -> Iterator[str]:
        if self.images < FEWEST_IMAGES:
            images = "1 image" if self.images == 1 else f"{self.images} images"
            yield f"calibrated on {images} of {self.spec}: 32 or more are usual"
        if all(_is_plain(images_of(batch)) for batch in self.batches()):  # stops at the first picture
            yield f"every calibration image of {self.spec} is of one plain colour: others may fall out of range"


def _is_plain(images: Array) -> bool:
    """Return whether each channel of each image or frame has one value only."""
    return not np.any(images.max(axis=(-2, -1)) > images.min(axis=(-2, -1)))
