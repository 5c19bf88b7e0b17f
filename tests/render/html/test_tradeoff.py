"""An artifact beside FP32, by speed and accuracy."""

from typing import Any

import pytest

from tests.evidence import evaluation
from tests.render.html.subjects import bench, manifest, subject
from vitdeploy.render.html.parts import Figure, Table
from vitdeploy.render.html.tradeoff import section


@pytest.mark.parametrize(
    ("change", "place", "lede", "lines"),
    [
        ({}, "no", "deit is 1.50 times as fast as FP32, with a top-1 drop of 0.10 points.", 1),
        ({"bench": bench(0.8)}, "yes", "The artifact is neither faster nor more accurate than FP32.", 0),
        (
            {"bench": bench(0.8), "evaluation": evaluation(-0.4, -0.2, -0.1)},
            "no", "deit is 0.80 times as fast as FP32, with a top-1 drop of -0.20 points.", 1,
        ),
        (
            {"evaluation": evaluation(-0.4, -0.2, -0.1)},
            "no", "deit is 1.50 times as fast as FP32, with a top-1 drop of -0.20 points.", 0,
        ),
    ],
)  # fmt: skip
def test_the_artifact_is_drawn_beside_fp32(change: dict[str, Any], place: str, lede: str, lines: int) -> None:
    drawn = section(subject(**change))
    assert (drawn.missing, drawn.doubts) == (None, ())
    figure, table = drawn.parts
    assert isinstance(table, Table)
    assert [(row[1], row[-1]) for row in table.rows] == [("FP32 reference", "reference"), ("deit", place)]
    assert drawn.lede == lede
    assert isinstance(figure, Figure)
    assert figure.wide.count('class="frontier"') == lines


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bench": None}, "there is no bench.json"),
        ({"evaluation": None}, "there is no eval.json"),
        ({"manifest": manifest(weights="random")}, "random weights"),
        ({"evaluation": evaluation(drop=float("nan"))}, "not finite"),
    ],
)
def test_what_cannot_be_drawn_says_why_and_what_to_do(change: dict[str, Any], why: str) -> None:
    gap = section(subject(**change)).missing
    assert gap is not None
    assert why in gap.why
    assert gap.fix


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bench": bench(1.5, "it drifted")}, "its latencies are in doubt: it drifted"),
        ({"evaluation": evaluation(doubts=("another order",))}, "its accuracy is in doubt: another order"),
    ],
)
def test_a_doubtful_artifact_is_drawn_hollow(change: dict[str, Any], why: str) -> None:
    drawn = section(subject("b", **change))
    assert drawn.doubts == (f"b is drawn hollow: {why}",)
    figure, table = drawn.parts
    assert isinstance(figure, Figure)
    assert figure.wide.count('class="badge doubt"') == 1
    assert 'class="frontier"' not in figure.wide
    assert isinstance(table, Table)
    assert table.rows[1][-1] == "in doubt"
    assert drawn.lede.startswith("The figures are in doubt")


def test_nothing_to_draw_says_what_to_run() -> None:
    gap = section(subject(none=True)).missing
    assert gap is not None
    assert (gap.why, gap.fix) == ("there is no bench.json", "vitdeploy bench deit")
