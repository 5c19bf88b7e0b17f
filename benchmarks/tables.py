"""Markdown tables that a benchmark writes row by row. A benchmark that was stopped continues with the missing rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitdeploy import environment
from vitdeploy.evidence import Bench, Interval

_MACHINE = re.compile(r", \d+ threads, [^|]*;")  # the line of `describe_machine`
VALID = "valid"
"""The last cell of a row whose measurement is not in doubt."""
_DOUBTS_LENGTH = 120  # characters: a cell is for a glance


def describe_machine(*libraries: str) -> str:
    """Return the CPU, its threads and instruction sets, and the versions of those `libraries` that are installed."""
    versions = environment.library_versions()
    installed = ", ".join(f"{name} {versions[name]}" for name in libraries if name in versions)
    return f"{describe_cpu()}; {installed}."


def describe_cpu() -> str:
    """Return the CPU, its threads and its instruction sets for products."""
    host = environment.host()
    return f"{host.cpu}, {host.cores} threads, {' '.join(host.isa)}"


def read_rows(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Read the rows of the table with these columns; none if the file or such a table is missing.

    A table never mixes CPUs: none of a page that names another kind of CPU, so that it begins anew.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    machines = [line for line in lines if _MACHINE.search(line)]
    if any(f"{describe_cpu()};" not in line for line in machines):
        print(f"{path.name} is of another CPU: it begins anew")
        return []
    return parse_rows(lines, columns)


def parse_rows(lines: Sequence[str], columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the rows of the table with these columns; none if there is no such table."""
    header = _line(columns)
    if header not in lines:
        return []
    rows = []
    for line in lines[lines.index(header) + 2 :]:
        if not line.startswith("| "):
            break
        rows.append(tuple(cell.strip() for cell in line.strip("|").split(" | ")))
    return rows


def read_valid_rows(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Read the rows that need not be measured again: those without a doubt in their last cell."""
    return [row for row in read_rows(path, columns) if row[-1] == VALID]


def write_page(path: Path, heading: Iterable[str], columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write the heading, then the table."""
    path.write_text("\n".join([*heading, "", *format_table(columns, rows), ""]), encoding="utf-8")


def format_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table. An empty cell shows a dash."""
    return [_line(columns), "|" + "---|" * len(columns), *map(_line, rows)]


def format_ratio(ratio: Interval | None, digits: int = 3) -> str:
    """Return a ratio with its 95 % interval: `1.030 [1.025, 1.035]`; `1` for the side that others are relative to."""
    if ratio is None:
        return "1"
    low, high = ratio.ci95
    return f"{ratio.ratio:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def format_doubts(bench: Bench) -> str:
    """Return the beginning of the doubts about a measurement, or `valid`."""
    return "; ".join(bench.doubts)[:_DOUBTS_LENGTH] or VALID


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') or '–' for cell in cells)} |"
