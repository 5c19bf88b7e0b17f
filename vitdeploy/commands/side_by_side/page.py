"""Write the page about several artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import REPORT
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
from vitdeploy.commands.side_by_side.folders import holds_several, load_folders
from vitdeploy.commands.side_by_side.runs import ArtifactRun, read_runs
from vitdeploy.commands.sweep.store import CSV, JSONL, MARK
from vitdeploy.commands.sweep.store import PAGE as SWEEP_PAGE
from vitdeploy.commands.sweep.trial import RECORD
from vitdeploy.errors import UsageError
from vitdeploy.measure.front import compare, describe_comparison
from vitdeploy.progress import Progress
from vitdeploy.render.html.comparison import Compared, GroupPart, describe_groups, render_comparison


def is_side_by_side(folders: Sequence[Given]) -> bool:
    """Return True if the page of these folders is about several artifacts: there are several, or it is a sweep."""
    paths = [Path(folder) for folder in folders if not isinstance(folder, Artifact)]
    return len(folders) > 1 or any(map(holds_several, paths))


def report_side_by_side(folders: Sequence[Given], out: Path | None, progress: Progress) -> Reported:
    """Write one page about several artifacts. Only those that may be compared share a table and a chart.

    Args:
        folders: artifacts, or folders of artifacts, of trials or of sweeps.
        out: the file to write; None: report.html in the current folder.
        progress: gets the steps.

    Raises:
        ArtifactError: a folder is damaged.
        UsageError: an artifact is given twice, the file cannot be written or is another file of an artifact or a sweep,
            or Jinja is not installed.
    """
    if not is_available():
        raise UsageError("jinja2 is not installed", fix="pip install 'vitdeploy[report]'.")
    loaded = load_folders(folders)
    place = out or Path(REPORT)
    check_place(place, loaded.artifacts)
    _refuse_sweep_files(place, folders)
    _refuse_own_report(place, loaded.artifacts)
    with progress.step(f"Read the evidence of {len(loaded.artifacts)} artifacts"):
        runs = read_runs(loaded.artifacts)
    rows = compare([run.record for run in runs])
    compared = tuple(
        Compared(number, row, run.verdict, run.outdated, run.missing, run.keys, run.machine)
        for number, (row, run) in enumerate(zip(rows, runs, strict=True), 1)
    )
    notes = (*describe_comparison(rows), *loaded.notes)
    groups = describe_groups(compared)
    text = render_comparison(compared, notes).encode()
    write_page(place, text)
    return Reported(
        report=str(place),
        bytes=len(text),
        verdict=_sum_up(runs),
        runs=tuple(_summarize(artifact, run.path) for artifact, run in zip(compared, runs, strict=True)),
        groups=tuple(_summarize_group(group) for group in groups),
        notes=notes,
    )


def _refuse_sweep_files(place: Path, folders: Sequence[Given]) -> None:
    """Refuse a file of a sweep or of a trial as the place.

    Raises:
        UsageError: it is one.
    """
    for folder in folders:
        if isinstance(folder, Artifact):
            continue
        for name in (MARK, CSV, JSONL, SWEEP_PAGE, RECORD):
            if place.resolve() == (Path(folder) / name).resolve():
                raise UsageError(f"{place} is a file of the sweep", fix="Choose another file with -o.")


def _refuse_own_report(place: Path, artifacts: Sequence[Artifact]) -> None:
    """Refuse the page of one of the artifacts as the place.

    Raises:
        UsageError: it is.
    """
    for artifact in artifacts:
        if place.resolve() in {artifact.file(REPORT).resolve(), artifact.beside(REPORT).resolve()}:
            raise UsageError(f"{place} is the report of {artifact.path} alone", fix="Choose another file with -o.")


def _sum_up(runs: Sequence[ArtifactRun]) -> str:
    """Return the worst verdict of all."""
    verdicts = {run.verdict for run in runs}
    order = ("fail", "invalid", "not judged", "pass")
    return next(verdict for verdict in order if verdict in verdicts)


def _summarize(artifact: Compared, path: Path) -> ReportedRun:
    row = artifact.row
    missing = tuple(
        SectionState(name=name, state="missing", missing=gap.why, fix=gap.fix) for name, gap in artifact.missing.items()
    )
    return ReportedRun(
        number=artifact.number,
        name=row.name,
        path=str(path),
        group=row.group,
        front=row.front,
        valid=row.valid,
        verdict=artifact.verdict,
        doubts=row.doubts,
        missing=missing,
    )


def _summarize_group(group: GroupPart) -> ReportedGroup:
    conditions = {condition.name: condition.value for condition in group.conditions}
    return ReportedGroup(number=group.number, runs=group.runs, conditions=conditions, apart=group.apart)
