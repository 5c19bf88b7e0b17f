"""The page of several artifacts: what is apart, why, what is missing, and how recipes differ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.sweep.rows import record
from tests.render.html.chromium import DESK, PHONE, Browser, browser, find
from vitdeploy.evidence import TrialRecord
from vitdeploy.measure.front import compare
from vitdeploy.render.html.comparison import Compared, compose_comparison, describe_groups, render_comparison
from vitdeploy.render.html.parts import Missing

HOSTILE = '<script>alert("x")</script>'
GAP = Missing("there is no bench.json", "vitdeploy bench bare")


def compared(records: list[TrialRecord], **more: dict[str, Any]) -> tuple[Compared, ...]:
    usual: dict[str, Any] = {
        "verdict": "pass",
        "outdated": False,
        "missing": {},
        "keys": {"target.kind": "openvino"},
        "machine": "a board",
    }
    return tuple(
        Compared(number=n, row=row, **{**usual, **more.get(row.name, {})}) for n, row in enumerate(compare(records), 1)
    )


RECORDS = [
    record("one", deployed=90.0),
    record("two", deployed=89.0, speedup=4.0, speedup_ci95=(3.9, 4.1)),
    record("there", machine="m2", device="GPU"),
    record("doubtful", machine="m2", device="GPU", doubts=("latency: busy",)),
    record("other data", data_digest="d2"),
    record("bare", deployed=None, p50_ms=None, speedup=None, drop=None),
]


def every() -> tuple[Compared, ...]:
    return compared(
        RECORDS,
        bare={"missing": {"bench": GAP}, "verdict": "not judged"},
        two={"keys": {"target.kind": "onnxruntime", "precision.kind": HOSTILE}},
    )


def test_each_group_has_its_own_table_and_says_why_it_is_apart() -> None:
    groups = describe_groups(every())
    assert [group.runs for group in groups] == [(1, 2), (3, 4), (5,)]
    assert [group.apart for group in groups] == [
        "", "Not compared with group 1: the machine and the device differ.",
        "Not compared with group 1: the data differs.",
    ]  # fmt: skip
    assert [[c.name for c in group.conditions if c.apart] for group in groups] == [[], ["machine", "device"], ["data"]]
    assert [len(group.charts) for group in groups] == [1, 1, 0], "one point is no comparison"
    for group in groups:
        for chart in group.charts:
            marks = re.findall(r'data-name="([^"]*)"', chart.figure.wide)
            assert sorted(marks) == sorted(row.name for row in group.rows)


def test_a_point_in_doubt_is_hollow_and_on_no_front() -> None:
    group = describe_groups(every())[1]
    (chart,) = group.charts
    assert 'class="badge doubt"' in chart.figure.wide
    assert {row.name: row.states[0] for row in group.rows} == {"there": "front", "doubtful": "in doubt"}
    assert [row.number for row in group.rows] == [3, 4], "numbers are those of the whole page"


def test_what_is_not_measured_is_listed_with_the_command_that_makes_it() -> None:
    page = compose_comparison(every(), ())
    assert [row.name for row in page.others] == ["bare"]
    assert page.others[0].states == ("not compared", "not judged")
    assert [(gap.name, gap.fix) for gap in page.gaps] == [("bare", "vitdeploy bench bare")]
    assert "Run <code>vitdeploy bench bare</code>" in render_comparison(every(), ())


def test_other_samples_and_versions_of_the_reference_are_reasons_to_be_apart() -> None:
    few = record("few", samples=100, reference_version="torch 2.4.1")
    every_one = record("every one", samples=10_000, reference_version="torch 2.8.0")
    first, second = describe_groups(compared([few, every_one]))
    assert second.apart == ("Not compared with group 1: the version of the reference and the number of samples differ.")
    shown = {condition.name: condition.value for condition in first.conditions}
    assert (shown["version of the reference"], shown["number of samples"]) == ("torch 2.4.1", "100")


def test_a_verdict_that_is_out_of_date_is_shown_as_it_is_now_with_a_remark() -> None:
    (group,) = describe_groups(compared([record("a", verdict="pass")], a={"outdated": True}))
    assert group.rows[0].states == ("front", "within the limits", "out of date")


def test_the_recipe_shows_what_differs_and_marks_the_exceptions() -> None:
    table = compose_comparison(every(), ()).differences
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.head == ("key", "1", "2", "3", "4", "5", "6")
    assert rows["target.kind"] == ("openvino", "<mark>onnxruntime</mark>", *["openvino"] * 4)
    assert "The recipes are the same." in render_comparison(compared(RECORDS), ())


def test_what_others_wrote_is_text_and_no_script_may_run() -> None:
    text = render_comparison(every(), (HOSTILE,))
    assert HOSTILE not in text
    assert "<script" not in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.mark.skipif(find() is None, reason="no Chromium on PATH: apt-get install chromium")
@pytest.mark.parametrize("width", [320, PHONE, DESK])
def test_nothing_is_wider_than_the_screen(chromium: Browser, tmp_path: Path, width: int) -> None:
    long = "a-very-long-name-of-an-artifact-" * 4
    many = [record(f"{long}{n}", deployed=90.0 - n, doubts=(long,) * (n % 2)) for n in range(12)]
    keys = {one.name: {"keys": {"recipe.key": one.name}} for one in many}
    page = tmp_path / "page.html"
    page.write_text(render_comparison(compared(many, **keys), (long,)), encoding="utf-8")
    chromium.open(page, width=width)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.complaints == []
