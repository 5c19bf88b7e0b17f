"""Sections of the page and their parts, as values that the template lays out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitdeploy.evidence import Status
from vitdeploy.render.html.markup import Markup


@dataclass(frozen=True)
class Figure:
    """A chart, drawn once for a wide screen and once for a phone."""

    wide: Markup
    narrow: Markup
    caption: str
    kind: Literal["figure"] = "figure"


@dataclass(frozen=True)
class Drawing:
    """A drawing that fits any width: a grid of cells, or rows of images."""

    body: Markup
    caption: str = ""
    kind: Literal["drawing"] = "drawing"


@dataclass(frozen=True)
class Table:
    """Rows of text. `numeric` columns are aligned right. If `folded`, only the title shows until it is opened."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    title: str = ""
    folded: bool = False
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class NamedValues:
    """Names with their values, as a list."""

    rows: tuple[tuple[str, str], ...]
    title: str = ""
    kind: Literal["facts"] = "facts"


@dataclass(frozen=True)
class Code:
    """Preformatted text."""

    text: str
    kind: Literal["code"] = "code"


Part = Figure | Drawing | Table | NamedValues | Code


@dataclass(frozen=True)
class Missing:
    """Missing evidence: the reason, and what to run."""

    why: str
    fix: str


@dataclass(frozen=True)
class Section:
    """A section of the page. With `missing`, it says so instead of showing figures.

    `lede` is the result in one or two sentences; `doubts` are the reasons to distrust it.
    """

    name: str
    title: str
    lede: str = ""
    doubts: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    missing: Missing | None = None


@dataclass(frozen=True)
class Tile:
    """One figure of the first screen. With `absent`, it is shown in grey."""

    label: str
    value: str
    note: str
    absent: bool = False


Word = Literal["pass", "fail", "invalid", "not judged", "out of date"]


@dataclass(frozen=True)
class CheckRow:
    """One check of the gate, as text."""

    name: str
    observed: str
    limit: str
    status: Status
    why: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Head:
    """The first screen: the artifact, the verdict, the main figures, and warnings."""

    name: str
    model: str
    about: str
    verdict: Word
    sentence: str
    tiles: tuple[Tile, ...]
    checks: tuple[CheckRow, ...]
    warnings: tuple[str, ...]
    missing: Missing | None = None


@dataclass(frozen=True)
class Page:
    """The whole report."""

    head: Head
    sections: tuple[Section, ...]
    version: str
    digest: str
