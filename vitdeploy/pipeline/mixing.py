"""Mixed precision: the linears that cost most accuracy stay in float, until the rest fits the budget."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence

from vitdeploy.artifact import Trial
from vitdeploy.pipeline.budget import Budget
from vitdeploy.pipeline.candidates import Candidate, Workshop
from vitdeploy.progress import Progress
from vitdeploy.recipe import PrecisionSpec

MOST_FLOAT_SHARE = 0.5
"""Of the placed linears: with more in float, little is gained by the others."""


def fitted(
    shop: Workshop, asked: PrecisionSpec, budget: Budget, progress: Progress
) -> tuple[Candidate | None, list[Trial]]:
    """The candidate of this precision that fits the budget with the fewest linears in float; None if there is none.

    All linears are tried first. If that loses too much, the worst 1, 2, 4, … stay in float until it fits, and then the
    number is halved in between. Worst is what adds most noise to the outputs for the work that it saves.

    Returns:
        The candidate, and every trial, that of the candidate last.
    """
    first = shop.make(asked)
    trials = [budget.judge(first)]
    if budget.holds(trials[0]):
        return first, trials
    order = shop.worst_first(first, progress)
    settled = asked.model_copy(update={"smooth_alpha": "off" if first.alpha is None else first.alpha})
    first.discard()
    made: dict[int, Candidate] = {}

    def fits(count: int) -> bool:
        found = shop.make(_keeping(settled, order[:count]))
        trials.append(budget.judge(found))
        if not budget.holds(trials[-1]):
            found.discard()
            return False
        made[count] = found
        return True

    enough = _first_power_of_two(fits, int(MOST_FLOAT_SHARE * len(order)))
    if enough is None:
        return None, [*trials[:-1], trials[-1].model_copy(update={"why": f"over the budget of {budget.limit:g}"})]
    low, high = enough // 2, enough  # low does not fit, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    for count, candidate in made.items():
        if count != high:
            candidate.discard()
    final = next(t for t in trials if t.float_linears == made[high].float_linears and budget.holds(t))
    return made[high], [*(t for t in trials if t is not final), final]


def _first_power_of_two(fits: Callable[[int], bool], most: int) -> int | None:
    count = 1
    while count <= most:
        if fits(count):
            return count
        count *= 2
    return None


def _keeping(precision: PrecisionSpec, names: Sequence[str]) -> PrecisionSpec:
    """With these linears in float besides; names are taken literally."""
    return precision.model_copy(update={"keep": (*precision.keep, *map(glob.escape, names))})
