"""The frontier, and artifacts that cannot be compared."""

from typing import Any

import pytest

from tests.evidence import evaluation
from tests.render.html.subjects import bench, manifest, subject
from vitdeploy.render.html.parts import Figure, Table
from vitdeploy.render.html.tradeoff import Point, find_frontier, make_points, section


def point(number: int, speed: float, drop: float) -> Point:
    return Point(number, str(number), speed, (speed, speed), drop, (drop, drop))


def on_the_frontier(*points: Point) -> list[int]:
    return [p.number for p in find_frontier(points)]


def test_a_point_that_another_beats_on_both_is_off() -> None:
    assert on_the_frontier(point(1, 2.0, 0.5), point(2, 3.0, 0.4), point(3, 4.0, 1.0)) == [2, 3]


def test_a_point_that_fp32_beats_is_off() -> None:
    assert on_the_frontier(point(1, 0.8, 0.1), point(2, 1.5, 0.1)) == [2]
    assert on_the_frontier(point(1, 0.8, -0.2)) == [1], "slower, but it gained accuracy"


def test_of_equals_one_stays() -> None:
    assert on_the_frontier(point(1, 2.0, 0.1), point(2, 2.0, 0.1)) == [1]


def test_good_subjects_are_drawn() -> None:
    others = [subject("b", bench=bench(2.0)), subject("c", bench=bench(1.2), evaluation=evaluation(1.0, 1.2, 1.4))]
    found = section([subject("a"), *others])
    assert found.missing is None
    assert found.doubts == ()
    table = found.parts[1]
    assert table.kind == "table"
    assert [(row[1], row[-1]) for row in table.rows] == [
        ("FP32 reference", "reference"), ("a", "no"), ("b", "yes"), ("c", "no"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bench": None}, "there is no bench.json"),
        ({"evaluation": None}, "there is no eval.json"),
        ({"manifest": manifest(weights="random")}, "random weights"),
        ({"manifest": manifest(digest="x" * 64)}, "another model"),
        ({"bench": bench(machine="elsewhere")}, "another machine"),
        ({"evaluation": evaluation(data_digest="other")}, "other data"),
        ({"evaluation": evaluation(drop=float("nan"))}, "not finite"),
    ],
)
def test_incomparable_artifacts_are_left_out_by_name(change: dict[str, Any], why: str) -> None:
    points, left_out = make_points([subject("a"), subject("b", **change)])
    assert [p.name for p in points] == ["a"]
    assert why in left_out["b"].why
    assert left_out["b"].fix


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bench": bench(1.5, "it drifted")}, "its latencies are in doubt: it drifted"),
        ({"evaluation": evaluation(doubts=("another order",))}, "its accuracy is in doubt: another order"),
    ],
)
def test_a_doubtful_artifact_is_drawn_hollow_and_is_not_on_the_frontier(change: dict[str, Any], why: str) -> None:
    subjects = [subject("a"), subject("b", **change)]
    points, left_out = make_points(subjects)
    assert ([p.name for p in points], left_out) == (["a", "b"], {})
    assert points[1] not in find_frontier(points)
    drawn = section(subjects)
    assert drawn.doubts == (f"b is drawn hollow: {why}",)
    figure, table = drawn.parts
    assert isinstance(figure, Figure)
    assert figure.wide.count('class="badge doubt"') == 1
    assert isinstance(table, Table)
    assert [row[-1] for row in table.rows][2] == "in doubt"
    alone = section([subject("b", **change)])
    assert alone.lede.startswith("The figures are in doubt")


def test_nothing_to_draw_says_what_to_run() -> None:
    gap = section([subject(none=True)]).missing
    assert gap is not None
    assert (gap.why, gap.fix) == ("deit: there is no bench.json", "vitdeploy bench deit")
