"""HTML and SVG elements as text that is escaped once, when it is made."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is markup already: templates and `element` take it as it is, and escape every other string."""

    __slots__ = ()

    def __html__(self) -> str:
        """What Jinja asks for: it is safe."""
        return self


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """`<tag attributes>children</tag>`, with everything in it escaped that is not `Markup`.

    A trailing underscore of an attribute is dropped (`class_`), others become hyphens (`stroke_width`); None leaves the
    attribute out. Numbers keep two decimals: a hundredth of a pixel.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(_number(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{given}>{join(*children)}</{tag}>")


def join(*parts: str) -> Markup:
    """Parts one after the other; what is not `Markup` is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in parts))


def _number(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".")
