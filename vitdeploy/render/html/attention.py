"""The section on attention maps, from plain arrays. `commands/report/attention_maps.py` computes them."""

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
    """The attention maps of one site, for every image, in FP32 and in the artifact.

    Attributes:
        name: the site.
        block: the index of its block, from 0.
        what: a title of the maps, such as "what the first token attends to".
        on_image: True if a map has a cell for each patch of the image; else its cells are queries × keys.
        reference: maps of FP32, (images, rows, columns); each value is the share of attention that a cell gets.
        deployed: maps of the artifact, same shape.
        drift: total variation distance of both sides' probabilities by head, (heads,): 0 is equal, 1 is disjoint.
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
    """Images (height, width, channels) uint8, the compared sites in order, and (site, reason) of those left out."""

    data: str
    images: tuple[Array, ...]
    sites: tuple[Site, ...]
    left_out: tuple[tuple[str, str], ...] = ()


_LEAST_DIFFERENCE = 0.01
"""The full colour of a difference stands for at least this share of the map's largest value. Otherwise rounding would
look like damage."""

_LEAST_SHOWN = 1e-5
"""A smaller share of attention is shown as "below": in float32, an equivalent graph changes that much by rounding."""

_LARGE_DRIFT = 0.05  # total variation distance with the full colour, unless the largest one is more


def section(maps: AttentionMaps | None, missing: Missing) -> Section:
    """Show how much attention changed, and the maps of the most changed and of the last site."""
    title = "Attention"
    if maps is None or not maps.sites or not maps.images:
        return Section("attention", title, missing=missing)
    worst = max(maps.sites, key=lambda site: float(site.drift.max()))
    head = int(worst.drift.argmax())
    lede = (
        f"On {len(maps.images)} images of {maps.data}, attention changed most in block {worst.block}, head {head}: "
        f"{_percent(float(worst.drift[head]))} of it moved to other tokens."
    )
    notes = tuple(f"{name} is not compared: {reason}" for name, reason in maps.left_out)
    sites = [maps.sites[-1]] if worst is maps.sites[-1] else [worst, maps.sites[-1]]
    parts = (_drift(maps.sites), *(_side_by_side(site, maps) for site in sites))
    return Section("attention", title, lede=lede, doubts=notes, parts=parts)


def _drift(sites: Sequence[Site]) -> Drawing:
    heads = max(len(site.drift) for site in sites)
    full = max(_LARGE_DRIFT, *(float(site.drift.max()) for site in sites))

    def at(row: int, column: int) -> Markup:
        site = sites[column]
        if row >= len(site.drift):
            return cell(class_="none", title=f"block {site.block} has {len(site.drift)} heads")
        value = float(site.drift[row])
        return cell(shade(value / full), class_="damage", title=f"block {site.block}, head {row}: {_percent(value)}")

    drawn = grid([f"head {n}" for n in range(heads)], [s.block for s in sites], at, label="Changed attention by head")
    scale = element("span", "0", element("i", class_="damage"), _percent(full), class_="ramp")
    legend = "attention that moved to other tokens (total variation distance, mean over queries and images) "
    return Drawing(join(drawn, element("p", legend, scale, class_="legend")))


def _side_by_side(site: Site, maps: AttentionMaps) -> Drawing:
    top = float(max(site.reference.max(), site.deployed.max()))
    difference = site.deployed - site.reference
    reach = max(float(np.abs(difference).max()), _LEAST_DIFFERENCE * top)
    heads = ("image", "FP32", "artifact", "difference")
    rows = [element("div", *(element("b", name) for name in heads), class_="maps-head")]
    for number, pixels in enumerate(maps.images):
        place = f"image {number}, block {site.block}"
        cells = (
            raster.image(pixels, f"image {number}"),
            raster.heat(site.reference[number], top, f"FP32, {place}"),
            raster.heat(site.deployed[number], top, f"artifact, {place}"),
            raster.difference(difference[number], reach, f"difference, {place}"),
        )
        rows.append(element("div", *cells, class_="maps-row"))
    ramps = (
        raster.ramp("0", _percent(top)),
        raster.difference_ramp(f"−{three_digits(100 * reach)} %", f"+{three_digits(100 * reach)} %"),
    )
    title = element("h3", f"Block {site.block}: {site.what}", element("span", site.name, class_="quiet"))
    return Drawing(join(title, element("div", *rows, class_="maps"), element("p", *ramps, class_="legend")))


def _percent(share: float) -> str:
    return f"{three_digits(100 * share)} %" if share >= _LEAST_SHOWN or not share else f"below {100 * _LEAST_SHOWN:g} %"
