"""Sensitivity: which linears the precision hurts most."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitdeploy.evidence import LayerSensitivity, Sensitivity
from vitdeploy.render.html import svg
from vitdeploy.render.html.fusion import ROLES
from vitdeploy.render.html.grid import cell, grid, shade
from vitdeploy.render.html.markup import Markup, element, join
from vitdeploy.render.html.parts import Drawing, Figure, Section, Table
from vitdeploy.render.html.subject import Subject
from vitdeploy.render.html.svg import Scale
from vitdeploy.render.numbers import NOTHING, three_digits

_SHOWN = 12  # of the most sensitive; the table has them all
_ROW = 22


def section(subject: Subject) -> Section:
    """Each linear's damage to the output when it alone is quantized, the worst first."""
    title, found = "Sensitivity", subject.sensitivity
    ranked = _ranked(found) if found is not None else []
    if found is None or not ranked:
        return Section("sensitivity", title, missing=subject.why("sensitivity"))
    worst = ranked[0]
    lede = (
        f"{worst.name} is the most sensitive: with it alone quantized, the output keeps a signal to noise ratio of "
        f"{worst.output_sqnr_db:.1f} dB. Lower is worse. {found.precision} on {found.images} images of "
        f"{found.calibration}: {found.choice}."
    )
    doubts = []
    if len(ranked) < len(found.layers):
        doubts.append(f"{len(found.layers) - len(ranked)} of {len(found.layers)} linears have no finite figure")
    parts = (_map(subject, ranked), _bars(ranked[:_SHOWN]), _table(found.layers))
    return Section("sensitivity", title, lede=lede, doubts=tuple(doubts), parts=parts)


def _ranked(found: Sensitivity) -> list[LayerSensitivity]:
    """The worst first; a layer that left the output alone to the last bit has no finite figure."""
    known = [layer for layer in found.layers if math.isfinite(layer.output_sqnr_db)]
    return sorted(known, key=lambda layer: layer.output_sqnr_db)


def _map(subject: Subject, ranked: Sequence[LayerSensitivity]) -> Drawing:
    blocks = [site.block for site in subject.structure.attention]
    rows = [role for role in ROLES if any(layer.role == role for layer in ranked)]
    low, high = ranked[0].output_sqnr_db, ranked[-1].output_sqnr_db

    def at(row: int, column: int) -> Markup:
        own = [n for n in ranked if n.role == rows[row] and n.block == blocks[column]]
        if not own:
            return cell(class_="none", told="not measured")
        share = (high - own[0].output_sqnr_db) / (high - low) if high > low else 0.0
        return cell(shade(share), class_="damage", told=f"{own[0].name}: {own[0].output_sqnr_db:.1f} dB")

    scale = element("span", f"{high:.0f} dB", element("i", class_="damage"), f"{low:.0f} dB", class_="ramp")
    drawn = grid(rows, blocks, at, label="Sensitivity by block") if rows and blocks else Markup("")
    return Drawing(join(drawn, element("p", "output SQNR ", scale, class_="legend")))


def _bars(ranked: Sequence[LayerSensitivity]) -> Figure:
    high = max(layer.output_sqnr_db for layer in ranked)
    low = min(0.0, *(layer.output_sqnr_db for layer in ranked))

    def draw(width: int) -> Markup:
        left = 220 if width > svg.NARROW else 150
        x = Scale(low, 1.08 * high if high > 0 else 1.0, left, width - 44)
        bottom = _ROW * len(ranked) + 8
        rows = []
        for number, layer in enumerate(ranked):
            y = 8 + _ROW * number
            name = layer.name if len(layer.name) <= left // 7 else f"…{layer.name[-(left // 7 - 1) :]}"
            rows += [
                svg.text(left - 10, y + 13, name, anchor="end"),
                element("rect", x=left, y=y + 3, width=max(x(layer.output_sqnr_db) - left, 1), height=13, class_="bar"),
                svg.text(x(layer.output_sqnr_db) + 6, y + 13, f"{layer.output_sqnr_db:.1f}", class_="quiet"),
            ]
        axis = svg.x_axis(x, 4, bottom, svg.plain, count=6 if width > svg.NARROW else 3)
        told = svg.text(width - 12, bottom + 34, "output SQNR, dB (short is worse)", anchor="end", class_="quiet")
        parts = element("g", axis, *rows, told, class_="series s1")
        return svg.canvas(width, bottom + 42, parts, label="The most sensitive linears")

    return svg.figure(draw, f"The {len(ranked)} most sensitive linears, each quantized alone.")


def _table(layers: Sequence[LayerSensitivity]) -> Table:
    def told(value: float | None, factor: float = 1.0) -> str:
        return NOTHING if value is None or not math.isfinite(value) else three_digits(factor * value)

    rows = tuple(
        (
            n.name, n.role, NOTHING if n.block is None else str(n.block), told(n.sqnr_db), told(n.output_sqnr_db),
            told(n.agreement, 100.0),
        )
        for n in layers
    )  # fmt: skip
    head = ("linear", "role", "block", "own SQNR dB", "output SQNR dB", "same prediction %")
    return Table(head, rows, numeric=frozenset({2, 3, 4, 5}), title=f"All {len(layers)} linears", folded=True)
