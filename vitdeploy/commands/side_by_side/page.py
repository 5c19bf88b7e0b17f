"""Write the page about several artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitdeploy.commands.given import Given
from vitdeploy.commands.report.report import (
    Reported,
    ReportedGroup,
    ReportedRun,
    SectionState,
    check_place,
    is_available,
    write_page,
)
from vitdeploy.commands.side_by_side.folders import load_folders
from vitdeploy.commands.side_by_side.runs import ArtifactRun, read_runs
from vitdeploy.errors import UsageError
from vitdeploy.measure.front import compare, describe_comparison
from vitdeploy.progress import Progress
from vitdeploy.render.html.comparison import Compared, GroupPart, describe_groups, render_comparison

PAGE = "report.html"


def report_side_by_side(given: Sequence[Given], out: Path | None, progress: Progress) -> Reported:
    """Write one page about several artifacts. Only those that may be compared share a table and a chart.

    Args:
        given: artifacts, or folders of artifacts, of trials or of sweeps.
        out: the file to write; None: report.html in the current folder.
        progress: gets the steps.

    Raises:
        ArtifactError: a folder is damaged.
        UsageError: an artifact is given twice, the file cannot be written, or Jinja is not installed.
    """
    if not is_available():
        raise UsageError("jinja2 is not installed", fix="pip install 'vitdeploy[report]'.")
    folders = load_folders(given)
    place = out or Path(PAGE)
    check_place(place, folders.artifacts)
    with progress.step(f"Read the evidence of {len(folders.artifacts)} artifacts"):
        runs = read_runs(folders.artifacts)
    rows = compare([run.record for run in runs])
    compared = tuple(
        Compared(n, row, run.verdict, run.missing, run.keys, run.machine)
        for n, (row, run) in enumerate(zip(rows, runs, strict=True), 1)
    )
    notes = (*describe_comparison(rows), *folders.notes)
    groups = describe_groups(compared)
    text = render_comparison(compared, notes).encode()
    write_page(place, text)
    return Reported(
        report=str(place),
        bytes=len(text),
        verdict=_sum_up(runs),
        runs=tuple(_summarize(one, run.path) for one, run in zip(compared, runs, strict=True)),
        groups=tuple(_summarize_group(group) for group in groups),
        notes=notes,
    )


def _sum_up(runs: Sequence[ArtifactRun]) -> str:
    """Return the worst verdict of all."""
    verdicts = {run.verdict for run in runs}
    order = ("fail", "invalid", "out of date", "not judged", "pass")
    return next(verdict for verdict in order if verdict in verdicts)


def _summarize(one: Compared, path: Path) -> ReportedRun:
    row = one.row
    missing = tuple(
        SectionState(name=name, state="missing", missing=gap.why, fix=gap.fix) for name, gap in one.missing.items()
    )
    return ReportedRun(
        number=one.number,
        name=row.name,
        path=str(path),
        group=row.group,
        front=row.front,
        valid=row.valid,
        verdict=one.verdict,
        doubts=row.doubts,
        missing=missing,
    )


def _summarize_group(group: GroupPart) -> ReportedGroup:
    conditions = {condition.name: condition.value for condition in group.conditions}
    return ReportedGroup(number=group.number, runs=group.runs, conditions=conditions, apart=group.apart)
