"""Tables in Markdown that a benchmark writes row by row, and goes on with where it was stopped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from vitdeploy import environment


def machine(*libraries: str) -> str:
    """The CPU, its threads and instruction sets, and the versions of `libraries` that are installed."""
    host, versions = environment.host(), environment.library_versions()
    told = ", ".join(f"{name} {versions[name]}" for name in libraries if name in versions)
    return f"{host.cpu}, {host.cores} threads, {' '.join(host.isa)}; {told}."


def rows_of(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The rows of the table in `path`; none when there is no such file, or its table has other columns."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    header, *rows = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines] or [()]
    return rows if header == tuple(columns) else []


def written(path: Path, heading: Iterable[str], columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write `heading` and the table."""
    path.write_text("\n".join([*heading, "", *table(columns, rows), ""]), encoding="utf-8")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [_line(columns), "|" + "---|" * len(columns), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') or '–' for cell in cells)} |"
