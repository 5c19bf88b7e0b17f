"""Attention maps as plain arrays, and how the page shows them. What makes them is in `pipeline/attention_maps.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitdeploy.render.html import raster
from vitdeploy.render.html.grid import cell, grid, shade
from vitdeploy.render.html.markup import Markup, element, join
from vitdeploy.render.html.parts import Drawing, Missing, Section
from vitdeploy.render.numbers import three_digits
from vitdeploy.session import Array


@dataclass(frozen=True)
class Site:
    """One attention site on both sides, for every image.

    Attributes:
        name: the site.
        block: its place, from 0.
        what: what a map shows, such as "what the first token attends to".
        on_image: whether a map lies on the image's patches; else it is queries × keys.
        reference: FP32's maps, (images, rows, columns), each value the share of attention that a cell gets.
        deployed: the artifact's, same shape.
        drift: total variation distance between both sides' probabilities by head, (heads,): 0 is equal, 1 disjoint.
    """

    name: str
    block: int
    what: str
    on_image: bool
    reference: Array
    deployed: Array
    drift: Array


@dataclass(frozen=True)
class AttentionMaps:
    """What was compared: images (height, width, channels) uint8, sites in order, and sites left out with the reason."""

    data: str
    images: tuple[Array, ...]
    sites: tuple[Site, ...]
    left_out: tuple[tuple[str, str], ...] = ()


_LEAST_DIFFERENCE = 0.01
"""Of a map's largest value: differences below are drawn as none, or rounding would look like damage."""

_LEAST_TOLD = 1e-5
"""Of attention: float32 itself moves that much when a graph is written otherwise."""

_MUCH = 0.05  # total variation distance; cells are full from here on, or from the largest where that is more


def section(maps: AttentionMaps | None, missing: Missing) -> Section:
    """How far attention moved, by block and head, and where it looks in two sites of interest."""
    title = "Attention"
    if maps is None or not maps.sites or not maps.images:
        return Section("attention", title, missing=missing)
    worst = max(maps.sites, key=lambda site: float(site.drift.max()))
    head = int(worst.drift.argmax())
    lede = (
        f"On {len(maps.images)} images of {maps.data} attention moved most in block {worst.block}, head {head}: "
        f"{_percent(float(worst.drift[head]))} of its weight went to other tokens."
    )
    notes = tuple(f"{name} is not compared: {why}" for name, why in maps.left_out)
    shown = [maps.sites[-1]] if worst is maps.sites[-1] else [worst, maps.sites[-1]]
    parts = (_drift(maps.sites), *(_side_by_side(site, maps) for site in shown))
    return Section("attention", title, lede=lede, doubts=notes, parts=parts)


def _drift(sites: Sequence[Site]) -> Drawing:
    heads = max(len(site.drift) for site in sites)
    full = max(_MUCH, *(float(site.drift.max()) for site in sites))

    def at(row: int, column: int) -> Markup:
        site = sites[column]
        if row >= len(site.drift):
            return cell(class_="none", told=f"block {site.block} has {len(site.drift)} heads")
        value = float(site.drift[row])
        return cell(shade(value / full), class_="damage", told=f"block {site.block}, head {row}: {_percent(value)}")

    drawn = grid([f"head {n}" for n in range(heads)], [s.block for s in sites], at, label="Attention moved, by head")
    scale = element("span", "0", element("i", class_="damage"), _percent(full), class_="ramp")
    told = "attention that went to other tokens (total variation distance, mean over queries and images) "
    return Drawing(join(drawn, element("p", told, scale, class_="legend")))


def _side_by_side(site: Site, maps: AttentionMaps) -> Drawing:
    top = float(max(site.reference.max(), site.deployed.max()))
    difference = site.deployed - site.reference
    reach = max(float(np.abs(difference).max()), _LEAST_DIFFERENCE * top)
    heads = ("image", "FP32", "artifact", "difference")
    rows = [element("div", *(element("b", name) for name in heads), class_="maps-head")]
    for number, pixels in enumerate(maps.images):
        where = f"image {number}, block {site.block}"
        cells = (
            raster.image(pixels, f"image {number}"),
            raster.heat(site.reference[number], top, f"FP32, {where}"),
            raster.heat(site.deployed[number], top, f"artifact, {where}"),
            raster.difference(difference[number], reach, f"difference, {where}"),
        )
        rows.append(element("div", *cells, class_="maps-row"))
    ramps = (
        raster.ramp("0", _percent(top)),
        raster.difference_ramp(f"−{three_digits(100 * reach)} %", f"+{three_digits(100 * reach)} %"),
    )
    title = element("h3", f"Block {site.block}: {site.what}", element("span", site.name, class_="quiet"))
    return Drawing(join(title, element("div", *rows, class_="maps"), element("p", *ramps, class_="legend")))


def _percent(share: float) -> str:
    return f"{three_digits(100 * share)} %" if share >= _LEAST_TOLD or not share else f"below {100 * _LEAST_TOLD:g} %"
