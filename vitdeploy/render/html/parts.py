"""What the page is made of: sections and their parts, as values that the template lays out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitdeploy.evidence import Status
from vitdeploy.render.html.markup import Markup


@dataclass(frozen=True)
class Figure:
    """A chart drawn for a desk and for a phone."""

    wide: Markup
    narrow: Markup
    caption: str
    kind: Literal["figure"] = "figure"


@dataclass(frozen=True)
class Drawing:
    """Something that fits every width by itself: a grid of cells, rows of images."""

    body: Markup
    caption: str = ""
    kind: Literal["drawing"] = "drawing"


@dataclass(frozen=True)
class Table:
    """Rows of text; `numeric` columns are set to the right. `folded` under its title until asked for."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    title: str = ""
    folded: bool = False
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    rows: tuple[tuple[str, str], ...]
    title: str = ""
    kind: Literal["facts"] = "facts"


@dataclass(frozen=True)
class Code:
    """Text as it stands."""

    text: str
    kind: Literal["code"] = "code"


Part = Figure | Drawing | Table | Facts | Code


@dataclass(frozen=True)
class Missing:
    """Evidence that is not there: why, and what to run."""

    why: str
    fix: str


@dataclass(frozen=True)
class Section:
    """A part of the page. With `missing` it says so in the place of what it would show.

    `lede` is the finding in one sentence, `doubts` is what makes it doubtful.
    """

    name: str
    title: str
    lede: str = ""
    doubts: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    missing: Missing | None = None


@dataclass(frozen=True)
class Tile:
    """One figure of the first screen. `absent` ones look it."""

    label: str
    value: str
    note: str
    absent: bool = False


Word = Literal["pass", "fail", "invalid", "not judged", "out of date"]


@dataclass(frozen=True)
class CheckRow:
    """One limit, judged."""

    name: str
    observed: str
    limit: str
    status: Status
    why: str


@dataclass(frozen=True)
class Head:
    """The first screen: what it is about, the verdict, the figures that matter, and what to keep in mind."""

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
