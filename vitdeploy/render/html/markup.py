"""HTML and SVG elements as text, which is escaped once, when an element is made."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is already markup. Templates and `element` insert it unchanged and escape every other string."""

    __slots__ = ()

    def __html__(self) -> str:
        """Tell Jinja that this is safe markup."""
        return self


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """Return `<tag attributes>children</tag>`. Everything that is not `Markup` is escaped.

    In attribute names, a trailing underscore is dropped (`class_`), and others become hyphens (`stroke_width`). None
    leaves an attribute out. Numbers have two decimals: a hundredth of a pixel.
    """
    pairs = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(_format(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{pairs}>{join(*children)}</{tag}>")


def join(*parts: str) -> Markup:
    """Concatenate parts. Everything that is not `Markup` is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in parts))


def _format(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".")
