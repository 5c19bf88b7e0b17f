"""A grid of cells, blocks from left to right: as wide as its place, however many blocks there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vitdeploy.render.html.markup import Markup, element

_MOST_TICKS = 12
"""Block numbers that fit below the cells on a phone."""


def grid(rows: Sequence[str], columns: Sequence[int], cell: Callable[[int, int], Markup], *, label: str) -> Markup:
    """`cell(row, column)` by index, with the rows' names on the left and the blocks' numbers below."""
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


def cell(*inside: Markup, class_: str, told: str) -> Markup:
    """One cell, whose words come up under the pointer."""
    return element("span", *inside, class_=f"cell {class_}", title=told)


def shade(share: float) -> Markup:
    """A filling between nothing (0) and all (1)."""
    return element("i", style=f"opacity:{min(max(share, 0.0), 1.0):.3f}")


def legend(*entries: tuple[str, str]) -> Markup:
    """(class of a cell, what it means) side by side."""
    return element(
        "p",
        *(element("span", element("i", class_=f"cell {class_}"), told) for class_, told in entries),
        class_="legend",
    )
