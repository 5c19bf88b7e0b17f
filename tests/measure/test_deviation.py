"""A fault is a jump of the error, against what rounding costs and against the errors before."""

from __future__ import annotations

from vitdeploy.measure.deviation import JUMP, MARGIN, Place, find_fault, find_steepest, measure_deviations

FLOOR = 1e-3


def _chain(*pairs: tuple[float | None, float]) -> list[Place]:
    return [Place(error, expected, (n - 1,) if n else ()) for n, (error, expected) in enumerate(pairs)]


def test_errors_that_grow_as_those_of_the_graph_are_no_fault() -> None:
    sound = _chain((0.0, 0.0), (2e-6, 1e-6), (9e-6, 4e-6), (3e-5, 1e-5))
    assert find_fault(sound, FLOOR) is None
    assert all(ratio is not None and ratio < 1 for ratio in measure_deviations(sound, FLOOR))


def test_the_first_jump_is_the_fault_and_what_follows_is_not() -> None:
    assert find_fault(_chain((0.0, 0.0), (2e-6, 1e-6), (4e-4, 4e-6), (9e-4, 1e-5)), FLOOR) == 2
    assert find_fault(_chain((0.9, 0.0), (2.0, 1e-6)), FLOOR) == 0


def test_an_engine_that_becomes_noisier_gradually_has_no_jump() -> None:
    noisy = _chain((0.0, 0.0), (4e-6, 1e-6), (3e-5, 4e-6), (9e-5, 1e-5))
    assert max(ratio or 0 for ratio in measure_deviations(noisy, FLOOR)) > 2
    assert find_fault(noisy, FLOOR) is None
    assert find_steepest(noisy, FLOOR) == 1


def test_limits_are_where_they_are_said() -> None:
    expected = 1e-4
    allowed = MARGIN * expected + FLOOR**2
    assert find_fault(_chain((0.0, expected), (1.01 * allowed, expected)), FLOOR) == 1
    assert find_fault(_chain((0.0, expected), (0.99 * allowed, expected)), FLOOR) is None
    before = 1.01 * allowed / JUMP
    assert find_fault(_chain((before, expected), (1.0 * allowed, expected)), FLOOR) is None


def test_a_place_that_cannot_be_compared_is_looked_through() -> None:
    places = _chain((2e-3, 0.0), (None, 0.0), (2e-3, 0.0))
    assert find_fault(places, FLOOR) == 0
    assert find_fault([Place(None, 0.0), Place(2e-3, 0.0, (0,))], FLOOR) == 1
    assert find_steepest([Place(None, 0.0)], FLOOR) is None


def test_branches_are_judged_by_the_worst_that_they_read() -> None:
    wrong, right = Place(0.5, 0.0), Place(0.0, 0.0)
    assert find_fault([right, wrong, Place(0.5, 0.0, (0, 1))], FLOOR) == 1
    assert find_fault([right, right, Place(0.5, 0.0, (0, 1))], FLOOR) == 2
