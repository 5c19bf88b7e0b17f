"""Benchmarks are run by hand. They must still import, and read their committed results, when somebody does."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.tables import read_rows, write_page

FOLDER = Path(__file__).parents[1] / "benchmarks"
APART = {"peers": "it runs in an environment of its own, which has nncf"}
MODULES = [".".join(path.relative_to(FOLDER.parent).with_suffix("").parts) for path in sorted(FOLDER.rglob("*.py"))]
COLUMNS = ("COLUMNS", "SPEED_COLUMNS", "ACCURACY_COLUMNS", "PROFILE_COLUMNS", "FORM_COLUMNS")


@pytest.mark.parametrize("module", [m for m in MODULES if m.rpartition(".")[2] not in (*APART, "__init__")])
def test_it_imports_and_its_page_has_its_tables(module: str) -> None:
    """A script that does not find its table would measure for hours again, or drop the other rows."""
    benchmark = import_module(module)
    assert benchmark.__doc__
    for name in COLUMNS:
        if hasattr(benchmark, name):
            header = f"| {' | '.join(getattr(benchmark, name))} |"
            assert header in benchmark.TABLE.read_text(encoding="utf-8").splitlines()


def test_a_page_gives_back_the_rows_of_each_table(tmp_path: Path) -> None:
    page, rows = tmp_path / "page.md", [("a", "1|2"), ("b", "")]
    write_page(page, ["# Heading", "", "| other | table |", "|---|---|", "| c | d |"], ("name", "value"), rows)
    assert read_rows(page, ("name", "value")) == [("a", "1/2"), ("b", "–")]
    assert read_rows(page, ("other", "table")) == [("c", "d")]
    assert read_rows(page, ("name", "figure")) == read_rows(tmp_path / "none.md", ("name", "value")) == []
