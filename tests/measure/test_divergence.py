"""Two computations diverge at a step that adds much noise, not in a gradual decline."""

from __future__ import annotations

import pytest

from vitdeploy.measure.divergence import Step, find_divergence, find_noisiest


def chain(*sqnr: float | None) -> list[Step]:
    """Each step reads the one before."""
    steps: list[Step] = []
    before = 200.0
    for one in sqnr:
        steps.append(Step(one, before))
        before = before if one is None else one
    return steps


@pytest.mark.parametrize(
    ("sqnr", "at"),
    [
        ((200.0, 40.0, 37.0, 35.2, 34.0), None),  # each adds the same
        ((200.0, 40.0, 37.0, 25.0, 24.8), 3),  # one adds thirty times as much
        ((19.0, 18.0), 0),  # under the limit from the start
        ((40.0, 37.0, 30.0, 25.0, 19.9), 4),  # declines to the limit
        ((22.7, 21.3, 19.5, 19.0), 0),  # falls below it third, by what the first has added
        ((150.0, 140.0, 90.0, 89.0), None),  # a step, but of rounding
        ((200.0, 30.0), 1),  # of two, one does it all
        ((40.0, None, 25.0), 2),  # what cannot be compared is passed over
        ((200.0, -200.0, -200.0), 1),  # NaN
        ((200.0, 40.0, 60.0, 40.0), None),  # noise that vanishes is no gain to be lost again
        ((), None),
        ((None, None), None),
    ],
)
def test_the_first_step_that_is_off(sqnr: tuple[float | None, ...], at: int | None) -> None:
    assert find_divergence(chain(*sqnr)) == at


def test_only_what_is_alike_is_compared() -> None:
    """Sums add nothing, and would make every other step stand out; a head is no block."""
    linears = [Step(36.0, 200.0), Step(36.5, 200.0), Step(35.0, 36.0)]
    sums = [Step(45.0, 36.0, alike=False) for _ in range(5)]
    assert find_divergence([*linears, *sums]) is None
    assert find_divergence([Step(s.sqnr_db, s.before_db) for s in (*linears, *sums)]) == 0
    blocks = chain(53.0, 50.1, 48.4, 47.2)
    assert find_divergence([*blocks, Step(31.4, 47.2, alike=False)]) is None
    assert find_divergence([*blocks, Step(31.4, 47.2)]) == 4
    assert find_divergence([*blocks, Step(19.0, 47.2, alike=False)]) == 4, "under the limit all the same"


def test_the_noisiest_step() -> None:
    assert find_noisiest(chain(200.0, 40.0, 39.0, 30.0, 29.9)) == 3
    assert find_noisiest(chain(None, 30.0)) == 1
    assert find_noisiest(chain(None)) is None
