"""A grid of cells, with the blocks from left to right, that fits any width."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vitdeploy.render.html.markup import Markup, element

_MOST_TICKS = 12
"""The number of block numbers that fit below the cells on a phone."""


def grid(rows: Sequence[str], columns: Sequence[int], cell: Callable[[int, int], Markup], *, label: str) -> Markup:
    """Draw `cell(row, column)` for each index, with names of the rows and block numbers below."""
    step = -(-len(columns) // _MOST_TICKS)
    lines = [
        element("div", element("b", name), *(cell(r, c) for c in range(len(columns))), class_="line")
        for r, name in enumerate(rows)
    ]
    numbers = [element("span", str(n) if not index % step else "") for index, n in enumerate(columns)]
    axis = element("div", element("b", "block"), *numbers, class_="line axis")
    return element(
        "div", *lines, axis, class_="grid", style=f"--columns:{max(len(columns), 1)}", role="img", aria_label=label
    )


def cell(*inside: Markup, class_: str, title: str) -> Markup:
    """Draw one cell; a browser shows its title under the pointer."""
    return element("span", *inside, class_=f"cell {class_}", title=title)


def shade(share: float) -> Markup:
    """Fill a cell with a colour between transparent (0) and full (1)."""
    return element("i", style=f"opacity:{min(max(share, 0.0), 1.0):.3f}")


def legend(*entries: tuple[str, str]) -> Markup:
    """Draw a legend of (class of a cell, its meaning) pairs, side by side."""
    return element(
        "p",
        *(element("span", element("i", class_=f"cell {class_}"), meaning) for class_, meaning in entries),
        class_="legend",
    )
