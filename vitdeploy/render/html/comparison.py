"""The page of several artifacts: a table and a chart for each group that may be compared, and how recipes differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitdeploy.escaping import escape_strings
from vitdeploy.evidence import SweepRow
from vitdeploy.frozen import replace
from vitdeploy.measure.front import list_conditions
from vitdeploy.render.html import fill_template
from vitdeploy.render.html.markup import element
from vitdeploy.render.html.parts import Missing, Table, Tile, Word
from vitdeploy.render.html.sweep_chart import Chart, draw_charts, tones
from vitdeploy.render.html.trial_rows import TrialRow, make_head, make_row
from vitdeploy.render.names import shorten_paths
from vitdeploy.version import __version__

_NOT_SET = "–"
_DIGEST = 12
_AXES = ("model", "target", "device", "precision")


@dataclass(frozen=True)
class Compared:
    """An artifact beside the others: see `commands.side_by_side.runs.ArtifactRun`."""

    number: int
    row: SweepRow
    verdict: Word
    outdated: bool
    missing: Mapping[str, Missing]
    keys: Mapping[str, str]
    machine: str = ""


@dataclass(frozen=True)
class GroupCondition:
    """A condition of a group; `apart` if it differs from that of the first group."""

    name: str
    value: str
    apart: bool


@dataclass(frozen=True)
class GroupPart:
    """Artifacts that may be compared with each other."""

    number: int
    title: str
    apart: str
    conditions: tuple[GroupCondition, ...]
    runs: tuple[int, ...]
    charts: tuple[Chart, ...]
    head: tuple[str, ...]
    rows: tuple[TrialRow, ...]


@dataclass(frozen=True)
class Gap:
    """Missing evidence of one artifact."""

    name: str
    why: str
    fix: str


@dataclass(frozen=True)
class ComparisonPage:
    """All that the template lays out."""

    title: str
    about: str
    tiles: tuple[Tile, ...]
    groups: tuple[GroupPart, ...]
    head: tuple[str, ...]
    others: tuple[TrialRow, ...]
    gaps: tuple[Gap, ...]
    differences: Table
    notes: tuple[str, ...]
    short: Mapping[str, str]
    version: str


def render_comparison(compared: Sequence[Compared], notes: Sequence[str]) -> str:
    """Return the page as HTML.

    Raises:
        UsageError: Jinja is not installed.
    """
    return fill_template("comparison.html", compose_comparison(*escape_strings((tuple(compared), tuple(notes)))))


def compose_comparison(compared: Sequence[Compared], notes: Sequence[str]) -> ComparisonPage:
    """Return the parts of the page."""
    groups = describe_groups(compared)
    rows = [artifact.row for artifact in compared]
    others = [artifact for artifact in compared if not artifact.row.group]
    models = len({row.model for row in rows})
    return ComparisonPage(
        title=f"{len(rows)} artifacts side by side",
        about=f"{_count(models, 'model')}, {_count(len({row.machine for row in rows if row.machine}), 'machine')}",
        tiles=_make_tiles(compared, len(groups)),
        groups=groups,
        head=make_head([artifact.row for artifact in others]),
        others=tuple(_make_row(artifact, tones(rows)) for artifact in others),
        gaps=tuple(
            Gap(artifact.row.name, gap.why, gap.fix) for artifact in compared for gap in artifact.missing.values()
        ),
        differences=_list_differences(compared),
        notes=tuple(notes),
        short=shorten_paths(row.model for row in rows),
        version=__version__,
    )


def describe_groups(compared: Sequence[Compared]) -> tuple[GroupPart, ...]:
    """Return the groups, each with its conditions and why it is apart from the first one."""
    members: dict[int, list[Compared]] = {}
    for artifact in compared:
        if artifact.row.group:
            members.setdefault(artifact.row.group, []).append(artifact)
    if not members:
        return ()
    first = list_conditions(next(iter(members.values()))[0].row)
    every = [artifact.row for artifact in compared]
    return tuple(_describe_group(number, own, first, every) for number, own in members.items())


def _describe_group(
    number: int, members: Sequence[Compared], first: Mapping[str, str], every: Sequence[SweepRow]
) -> GroupPart:
    rows = [artifact.row for artifact in members]
    own = list_conditions(rows[0])
    words = next((artifact.machine for artifact in members if artifact.machine), "")
    machine = f"{words} ({own['machine']})" if words else own["machine"]
    shown = {**own, "machine": machine, "data": own["data"][:_DIGEST]}
    other = [name for name, value in own.items() if value != first[name]]
    numbers = tuple(artifact.number for artifact in members)
    return GroupPart(
        number=number,
        title=f"Group {number}: {rows[0].metric} and latency, {own['device']}",
        apart=_explain_apart(other),
        conditions=tuple(GroupCondition(name, value, name in other) for name, value in shown.items()),
        runs=numbers,
        charts=tuple(draw_charts(rows, numbers, every)) if len(rows) > 1 else (),
        head=make_head(rows),
        rows=tuple(_make_row(artifact, tones(every)) for artifact in members),
    )


def _explain_apart(other: Sequence[str]) -> str:
    """Return why a group is not compared with the first one; empty for the first one itself."""
    names = " and ".join(f"the {name}" for name in other)
    return f"Not compared with group 1: {names} {'differs' if len(other) == 1 else 'differ'}." if other else ""


def _make_row(artifact: Compared, colours: Mapping[str, int]) -> TrialRow:
    row = artifact.row
    row = replace(row, axes={name: value for name in _AXES if (value := getattr(row, name))})
    trial_row = make_row(artifact.number, row, colours[row.model])
    verdict = () if row.verdict or row.status != "done" else (artifact.verdict,)
    remark = ("out of date",) if artifact.outdated else ()
    return TrialRow(**{**vars(trial_row), "states": (*trial_row.states, *verdict, *remark)})


def _make_tiles(compared: Sequence[Compared], groups: int) -> tuple[Tile, ...]:
    passed = sum(artifact.verdict == "pass" for artifact in compared)
    doubtful = sum(bool(artifact.row.doubts) for artifact in compared)
    gaps = sum(bool(artifact.missing) for artifact in compared)
    about_gaps = "evidence is missing or out of date" if gaps else "all evidence is there"
    return (
        Tile("groups", str(groups), "only within one is anything compared", absent=not groups),
        Tile("passed the gate", f"{passed} of {len(compared)}", "by their own limits", absent=not passed),
        Tile("in doubt", str(doubtful), "drawn hollow, on no front", absent=not doubtful),
        Tile("incomplete", str(gaps), about_gaps, absent=not gaps),
    )


def _list_differences(compared: Sequence[Compared]) -> Table:
    """Return the keys of the recipe that are not the same for all; values that are not the most frequent are marked."""
    keys = sorted({key for artifact in compared for key in artifact.keys})
    rows = []
    for key in keys:
        values = [artifact.keys.get(key, _NOT_SET) for artifact in compared]
        if len(set(values)) == 1:
            continue
        usual = Counter(values).most_common(1)[0][0]
        rows.append((key, *(value if value == usual else element("mark", value) for value in values)))
    return Table(("key", *(str(artifact.number) for artifact in compared)), tuple(rows))


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
