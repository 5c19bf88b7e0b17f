"""Profiles: the time of one run by part of the model, from the engine's own counters, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.evidence import Bench, Profile, Roofline
from vitdeploy.render import numbers
from vitdeploy.render.html import svg
from vitdeploy.render.html.markup import Markup, element
from vitdeploy.render.html.parts import Figure, NamedValues, Part, Table
from vitdeploy.render.html.svg import Scale
from vitdeploy.render.numbers import BETWEEN, three_digits

_LONGEST = 40  # operators in the table
_BAR, _GAP = 14, 12
_FIGURES = 118  # pixels for the figures behind the longest bar


def parts(bench: Bench) -> tuple[Part, ...]:
    """Make the chart and the tables; nothing if nothing was profiled."""
    if not bench.profiles:
        return ()
    return (_bars(bench), *(_longest(profile) for profile in bench.profiles))


def peaks(roofline: Roofline) -> NamedValues:
    """Explain the efficiency: the measured peak, and the arithmetic of the model."""
    gops = (f"{kind} {peak.gops:,.0f} ({peak.engine})" for kind, peak in sorted(roofline.peaks.items()))
    work = (f"{kind} {three_digits(count / 1e9)}" for kind, count in sorted(roofline.operations.items()))
    return NamedValues(
        (
            (f"Peak of {roofline.threads} threads", f"measured, in 10⁹ operations a second: {', '.join(gops)}"),
            ("Work of the model", f"matrix products, in 10⁹ operations an image: {', '.join(work)}"),
            (
                "Of the peak",
                "the least time that this work takes at the measured peak, as a share of the median latency",
            ),
        )
    )


def _times(profile: Profile) -> list[tuple[str, float]]:
    return [*profile.roles.items(), (BETWEEN, profile.between_ms)]


def _bars(bench: Bench) -> Figure:
    profiles = bench.profiles
    order = [run.name for run in bench.runs]
    longest = max(ms for profile in profiles for _, ms in _times(profile))
    rows = [name for name, _ in _times(profiles[0])]
    step = _BAR * len(profiles) + _GAP

    def draw(width: int) -> Markup:
        left = 132 if width > svg.NARROW else 112
        x = Scale(0.0, longest, left, width - _FIGURES)
        drawn: list[str] = []
        for number, name in enumerate(rows):
            top = _GAP + step * number
            drawn.append(svg.text(left - 10, top + _BAR * len(profiles) / 2 + 4, name, anchor="end"))
            for k, profile in enumerate(profiles):
                ms, y = dict(_times(profile)).get(name, 0.0), top + _BAR * k
                drawn.append(
                    element(
                        "g",
                        element("rect", x=left, y=y, width=max(x(ms) - left, 1), height=_BAR - 2, class_="bar"),
                        element(
                            "text",
                            element("tspan", f"{three_digits(ms)} ms", class_="strong"),
                            "  ",
                            element("tspan", numbers.share(ms, profile.total_ms), class_="quiet"),
                            x=x(ms) + 6,
                            y=y + 10,
                        ),
                        class_=f"series s{_series(profile.name, order)}",
                    )
                )
        return svg.canvas(width, _GAP + step * len(rows), *drawn, label="Time of one run by part of the model")

    totals = "; ".join(f"{p.name} {three_digits(p.total_ms)} ms" for p in profiles)
    return svg.figure(
        draw,
        f"The time of one run by part of the model: {totals}. The times come from the engine's own counters, which "
        f"slow it down a little. “{BETWEEN.capitalize()}” is time that no operator counts: passing inputs and outputs, "
        "starting the next operator, and times below the counters' resolution of a microsecond.",
    )


def _series(name: str, order: Sequence[str]) -> int:
    """Return the number of the colour that this side has in the distributions."""
    return min(order.index(name), 5) if name in order else 1


def _longest(profile: Profile) -> Table:
    longest = profile.operators[:_LONGEST]
    rows = tuple((o.name, o.kind, o.role, three_digits(o.ms), numbers.share(o.ms, profile.total_ms)) for o in longest)
    count = len(profile.operators)
    title = f"the {len(longest)} longest of {count:,} operators" if count > len(longest) else f"all {count} operators"
    head = ("operator", "kernel", "part of the model", "ms", "share")
    return Table(head, rows, numeric=frozenset({3, 4}), title=f"{profile.name}: {title}", folded=True)
