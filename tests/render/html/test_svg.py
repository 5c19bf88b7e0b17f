"""Scales and their ticks."""

import pytest

from vitdeploy.render.html.svg import Scale


def test_a_scale_maps_its_ends_and_stays_within() -> None:
    scale = Scale(10, 20, 0, 100)
    assert [scale(v) for v in (10, 15, 20, 0, 99)] == [0, 50, 100, 0, 100]


def test_a_logarithmic_scale_gives_each_decade_the_same_room() -> None:
    scale = Scale(1, 100, 0, 10, log=True)
    assert [scale(v) for v in (1, 10, 100)] == pytest.approx([0, 5, 10])
    assert scale.ticks(5) == [1, 2, 5, 10, 20, 50, 100]
    assert scale(0.0) == 0, "nothing has no logarithm"


def test_an_axis_of_one_value_has_a_middle() -> None:
    assert Scale(3, 3, 0, 100)(3) == 50


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1.3, [0, 0.5, 1]), (-0.6, 2.1, [-0.5, 0, 0.5, 1, 1.5, 2]), (4.2, 4.6, [4.2, 4.3, 4.4, 4.5, 4.6])],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert Scale(low, high, 0, 1).ticks(len(ticks)) == pytest.approx(ticks)
