"""The section on sensitivity: the linears that the precision damages most."""

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

_SHOWN = 12  # linears in the chart; the table has all
_ROW = 22


def section(subject: Subject) -> Section:
    """Show the damage that each linear does when it alone is quantized."""
    title, sensitivity = "Sensitivity", subject.sensitivity
    ranked = _rank(sensitivity) if sensitivity is not None else []
    if sensitivity is None or not ranked:
        return Section("sensitivity", title, missing=subject.find_gap("sensitivity"))
    worst = ranked[0]
    lede = (
        f"{worst.name} is the most sensitive linear: with it alone quantized, the signal to noise ratio (SQNR) of the "
        f"model's output is {worst.output_sqnr_db:.1f} dB; lower is worse. Measured in {sensitivity.precision} on "
        f"{sensitivity.images} images of {sensitivity.calibration}, with {sensitivity.choice}."
    )
    doubts = []
    count = len(sensitivity.layers)
    if len(ranked) < count:
        doubts.append(f"{count - len(ranked)} of {count} linears have no finite figure")
    parts = (_map(subject, ranked), _bars(ranked[:_SHOWN]), _table(sensitivity.layers))
    return Section("sensitivity", title, lede=lede, doubts=tuple(doubts), parts=parts)


def _rank(sensitivity: Sensitivity) -> list[LayerSensitivity]:
    """Sort the worst first. A linear that does not change the output has no finite figure and is left out."""
    finite = [layer for layer in sensitivity.layers if math.isfinite(layer.output_sqnr_db)]
    return sorted(finite, key=lambda layer: layer.output_sqnr_db)


def _map(subject: Subject, ranked: Sequence[LayerSensitivity]) -> Drawing:
    blocks = [site.block for site in subject.structure.attention]
    rows = [role for role in ROLES if any(layer.role == role for layer in ranked)]
    low, high = ranked[0].output_sqnr_db, ranked[-1].output_sqnr_db

    def at(row: int, column: int) -> Markup:
        layer = next((n for n in ranked if n.role == rows[row] and n.block == blocks[column]), None)  # the worst
        if layer is None:
            return cell(class_="none", title="not measured")
        share = (high - layer.output_sqnr_db) / (high - low) if high > low else 0.0
        return cell(shade(share), class_="damage", title=f"{layer.name}: {layer.output_sqnr_db:.1f} dB")

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
        unit = svg.text(width - 12, bottom + 34, "output SQNR in dB (shorter is worse)", anchor="end", class_="quiet")
        parts = element("g", axis, *rows, unit, class_="series s1")
        return svg.canvas(width, bottom + 42, parts, label="The most sensitive linears")

    return svg.figure(draw, f"The {len(ranked)} most sensitive linears, each quantized alone.")


def _table(layers: Sequence[LayerSensitivity]) -> Table:
    def figure(value: float | None, factor: float = 1.0) -> str:
        return NOTHING if value is None or not math.isfinite(value) else three_digits(factor * value)

    rows = tuple(
        (
            n.name, n.role, NOTHING if n.block is None else str(n.block), figure(n.sqnr_db), figure(n.output_sqnr_db),
            figure(n.agreement, 100.0),
        )
        for n in layers
    )  # fmt: skip
    head = ("linear", "role", "block", "own SQNR dB", "output SQNR dB", "same prediction %")
    return Table(head, rows, numeric=frozenset({2, 3, 4, 5}), title=f"All {len(layers)} linears", folded=True)
