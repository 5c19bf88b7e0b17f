"""The page of a sweep: accuracy against latency, all trials with filters, and the reasons of those that failed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.escaping import escape_strings
from vitdeploy.evidence import Sweep, SweepFailure, SweepRow
from vitdeploy.render.html import fill_template
from vitdeploy.render.html.markup import Markup
from vitdeploy.render.html.parts import Tile
from vitdeploy.render.html.sweep_chart import Chart, draw_charts, tones
from vitdeploy.render.html.trial_rows import TrialRow, make_head, make_row
from vitdeploy.render.names import shorten_paths
from vitdeploy.version import __version__

_SCRIPT = Path(__file__).parent / "templates" / "sweep.js"


@dataclass(frozen=True)
class Filter:
    """A limit that hides trials: the figure, its direction, its label and its unit."""

    figure: str
    direction: str
    label: str
    unit: str
    value: str = ""


@dataclass(frozen=True)
class AxisChoice:
    """An axis of which one value can be shown alone."""

    axis: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """A reason, and the trials that failed for it."""

    step: str
    reason: str
    fix: str
    trials: tuple[str, ...]


@dataclass(frozen=True)
class SweepPage:
    """All that the template lays out. `short` has shorter forms of names that are too long for their places."""

    title: str
    about: str
    tiles: tuple[Tile, ...]
    charts: tuple[Chart, ...]
    filters: tuple[Filter, ...]
    choices: tuple[AxisChoice, ...]
    head: tuple[str, ...]
    rows: tuple[TrialRow, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    short: Mapping[str, str]
    script: Markup
    script_digest: str
    version: str


def render_sweep(result: Sweep) -> str:
    """Return the page of a sweep as HTML.

    Raises:
        UsageError: Jinja is not installed.
    """
    return fill_template("sweep.html", compose_sweep(escape_strings(result)))


def compose_sweep(result: Sweep) -> SweepPage:
    """Return the parts of the page."""
    rows = result.trials
    script = _SCRIPT.read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    combinations = "1 combination" if result.excluded == 1 else f"{result.excluded} combinations"
    excluded = f", {combinations} excluded" if result.excluded else ""
    return SweepPage(
        title=Path(result.sweep).resolve().name,
        about=f"{len(rows)} trial{'s' if len(rows) != 1 else ''} of {Path(result.file).name}{excluded}",
        tiles=_make_tiles(rows),
        charts=tuple(draw_charts(rows)),
        filters=_make_filters(rows),
        choices=_make_choices(rows),
        head=make_head(rows),
        rows=tuple(make_row(number, row, tones(rows)[row.model]) for number, row in enumerate(rows, 1)),
        failures=tuple(_make_failure(failure, rows) for failure in result.failures),
        notes=result.notes,
        short=shorten_paths(text for row in rows for text in (row.model, *row.axes.values())),
        script=Markup(script),
        script_digest=digest,
        version=__version__,
    )


def _make_tiles(rows: Sequence[SweepRow]) -> tuple[Tile, ...]:
    measured = [row for row in rows if row.status == "done"]
    doubtful = [row for row in measured if row.doubts]
    failed = [row for row in rows if row.status == "failed"]
    waiting = [row for row in rows if row.status in ("pending", "bundle")]
    others = f"{len(waiting)} are not yet" if waiting else "the others failed" if failed else "all of them"
    return (
        Tile("measured", f"{len(measured)} of {len(rows)}", others),
        Tile("on the front", str(sum(row.front for row in rows)), "nothing beats these"),
        Tile("in doubt", str(len(doubtful)), "drawn hollow, on no front", absent=not doubtful),
        Tile("failed", str(len(failed)), "with their reasons below" if failed else "none", absent=not failed),
    )


def _make_filters(rows: Sequence[SweepRow]) -> tuple[Filter, ...]:
    """Return the limits that hide trials. Those of the sweep file are shown in their fields."""
    limits = next((row.limits for row in rows if row.limits), {})

    def limit(key: str) -> str:
        value = limits.get(key)
        return f"{value:g}" if isinstance(value, float) else ""

    units = {row.unit for row in rows if row.unit}
    return (
        Filter("drop", "max", "drop at most", units.pop() if len(units) == 1 else "", limit("max_drop_pp")),
        Filter("latency", "max", "latency at most", "ms", limit("max_latency_ms")),
        Filter("speedup", "min", "speed-up at least", "×", limit("min_speedup")),
        Filter("size", "max", "size at most", "MiB", limit("max_size_mib")),
        Filter("memory", "max", "memory at most", "MiB", limit("max_memory_mib")),
    )


def _make_choices(rows: Sequence[SweepRow]) -> tuple[AxisChoice, ...]:
    axes = list(dict.fromkeys(axis for row in rows for axis in row.axes))
    values = {axis: tuple(dict.fromkeys(row.axes.get(axis, "") for row in rows)) for axis in axes}
    return tuple(AxisChoice(axis, choices) for axis, choices in values.items() if len(choices) > 1)


def _make_failure(failure: SweepFailure, rows: Sequence[SweepRow]) -> Failure:
    labels = {row.name: ", ".join(row.axes.values()) or row.name for row in rows}
    return Failure(failure.step, failure.reason, failure.fix, tuple(labels[name] for name in failure.trials))
