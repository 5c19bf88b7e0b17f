"""Benchmarks are run by hand. They must still import, and read their committed results, when somebody does."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks import side_by_side
from benchmarks.tables import VALID, describe_machine, parse_rows, read_rows, read_valid_rows, write_page

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


def test_a_row_in_doubt_and_a_table_of_another_cpu_are_measured_again(tmp_path: Path) -> None:
    page, columns = tmp_path / "page.md", ("name", "measurement")
    rows = [("a", VALID), ("b", "another process used 2 CPUs")]
    write_page(page, ["# Heading", "", describe_machine()], columns, rows)
    assert read_rows(page, columns) == rows
    assert read_valid_rows(page, columns) == rows[:1]
    page.write_text(page.read_text().replace(describe_machine(), "Another CPU, 8 threads, avx2;"))
    assert read_valid_rows(page, columns) == read_rows(page, columns) == []


NOT_RUN_AGAIN = {
    "README": "it lists the pages",
    "gpu": "it needs a GPU",
}


def test_one_command_writes_every_page() -> None:
    pages = {path.stem for path in FOLDER.glob("*.md")} - set(NOT_RUN_AGAIN)
    assert pages == {page.name for page in runner.PAGES}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runner.Page:
    """A page whose two commands write to a file that a new beginning removes; the second one fails at first."""
    log = tmp_path / "log"
    (tmp_path / "first.py").write_text(f"open({str(log)!r}, 'a').write('first ')")
    (tmp_path / "second.py").write_text(f"open({str(log)!r}, 'a').write('second ')\nopen({str(tmp_path / 'go')!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(runner, "STATE", tmp_path / "state.json")
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    monkeypatch.setattr(runner, "make_stamp", lambda _: {"commit": (tmp_path / "commit").read_text()})
    (tmp_path / "commit").write_text("1")
    return runner.Page("page", ("first", "second"), removed=(log,))


def test_a_page_goes_on_where_it_failed_and_begins_anew_on_another_commit(page: runner.Page) -> None:
    (log,) = page.removed
    assert not runner.run(page)
    (log.parent / "go").touch()
    assert runner.run(page)
    assert runner.run(page)
    assert log.read_text() == "first second second "
    (log.parent / "commit").write_text("2")
    assert runner.run(page)
    assert log.read_text() == "first second "


def test_a_row_of_side_by_side_changes_the_section_of_its_cpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(side_by_side, "TABLE", page)

    def store(cpu: str, model: str, speed: str) -> None:
        monkeypatch.setattr(side_by_side, "describe_cpu", lambda: cpu)
        summary = (model, *[speed] * (len(side_by_side.SUMMARY_COLUMNS) - 1))
        side_by_side._store(summary, [(model, *[speed] * (len(side_by_side.COLUMNS) - 1))], ["a", "b"])

    def read(cpu: str) -> list[tuple[str, str]]:
        section = side_by_side._read_sections()[cpu]
        tables = [parse_rows(section, columns) for columns in (side_by_side.SUMMARY_COLUMNS, side_by_side.COLUMNS)]
        assert [row[:2] for row in tables[0]] == [row[:2] for row in tables[1]]
        return [row[:2] for row in tables[0]]

    store("old", "b", "1")
    store("new", "a", "2")
    before = page.read_text().partition("## new")[0]
    store("new", "b", "3")
    store("new", "a", "4")
    assert page.read_text().partition("## new")[0] == before
    assert read("old") == [("b", "1")]
    assert read("new") == [("a", "4"), ("b", "3")]
    assert page.read_text().count("Not measured yet: a.") == 1
