"""The section on merged or dropped tokens, from plain arrays. `commands/report/token_groups.py` computes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitdeploy.render.html import raster
from vitdeploy.render.html.markup import element, join
from vitdeploy.render.html.parts import Drawing, Missing, Section
from vitdeploy.session import Array


@dataclass(frozen=True)
class PatchGroups:
    """The patches behind the attention of one block.

    Attributes:
        block: its number, from 0.
        groups: the token that each patch is in, for each image, (images, rows, columns); -1 where it was dropped.
    """

    block: int
    groups: Array

    @property
    def left(self) -> int:
        """The number of tokens that are left of one image's patches."""
        groups = self.groups[0]
        return len(np.unique(groups[groups >= 0]))


@dataclass(frozen=True)
class TokenGroups:
    """Images (height, width, channels) uint8, where they are from, and what became of their patches, by block."""

    data: str
    images: tuple[Array, ...]
    steps: tuple[PatchGroups, ...]


def section(groups: TokenGroups | None, missing: Missing) -> Section:
    """Show the images, and behind each block the patches that share a token or are dropped."""
    title = "Tokens"
    if groups is None or not groups.steps:
        return Section("tokens", title, missing=missing)
    first, last = groups.steps[0], groups.steps[-1]
    drops = bool((last.groups < 0).any())
    lede = (
        f"Of {first.groups[0].size} patches, {last.left} tokens are left behind block {last.block}: the others are "
        + ("dropped, at the same positions of every image." if drops else "merged with those that are most like them.")
    )
    legend = (
        "Dark patches are dropped."
        if drops
        else "Patches with an outline of one colour are one token, drawn in their mean colour, wherever they are. "
        "Patches without an outline are tokens of their own. The artifact's graph ran in ONNX Runtime."
    )
    legend += f" Images: {groups.data}."
    return Section("tokens", title, lede=lede, parts=(_rows(groups, legend),))


def _rows(groups: TokenGroups, legend: str) -> Drawing:
    heads = ("image", *(f"block {step.block}: {step.left} left" for step in groups.steps))
    rows = [element("div", *(element("b", name) for name in heads), class_="maps-head")]
    for number, pixels in enumerate(groups.images):
        cells = [raster.image(pixels, f"image {number}")]
        for step in groups.steps:
            place = (
                f"image {number} behind block {step.block}: {step.left} tokens of {step.groups[number].size} patches"
            )
            cells.append(raster.patches(pixels, step.groups[number], place))
        rows.append(element("div", *cells, class_="maps-row"))
    style = f"--maps:{1 + len(groups.steps)}"
    return Drawing(join(element("div", *rows, class_="maps", style=style), element("p", legend, class_="legend")))
