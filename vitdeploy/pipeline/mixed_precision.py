"""Mixed precision: the linears that cost most accuracy stay in float, until the rest fits the budget."""

from __future__ import annotations

import glob
from collections.abc import Sequence

from vitdeploy.artifact import Trial
from vitdeploy.calibrate.quantizer import QUANTIZED
from vitdeploy.pipeline.accuracy_budget import Budget
from vitdeploy.pipeline.candidate import Candidate, Workshop
from vitdeploy.recipe import PrecisionSpec


def fitted(shop: Workshop, asked: PrecisionSpec, budget: Budget) -> tuple[Candidate | None, list[Trial]]:
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
    if asked.kind not in QUANTIZED:
        first.discard()
        return None, [_over(trials[0], budget)]
    order = shop.worst_first(first)
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

    counts = [*_powers_of_two(len(order) - 1), len(order) - 1]  # something has to be left, or it is float
    place = next((i for i, count in enumerate(counts) if count > 0 and fits(count)), None)
    if place is None:
        return None, [*trials[:-1], _over(trials[-1], budget)]
    low, high = counts[place - 1] if place else 0, counts[place]  # low does not fit, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    for count, candidate in made.items():
        if count != high:
            candidate.discard()
    final = next(t for t in trials if t.float_linears == made[high].float_linears and budget.holds(t))
    return made[high], [*(t for t in trials if t is not final), final]


def _over(trial: Trial, budget: Budget) -> Trial:
    return trial.model_copy(update={"why": f"over the budget of {budget.limit:g}"})


def _powers_of_two(below: int) -> list[int]:
    return [1 << i for i in range(max(0, below - 1).bit_length())]


def _keeping(precision: PrecisionSpec, names: Sequence[str]) -> PrecisionSpec:
    """With these linears in float besides; names are taken literally."""
    return precision.model_copy(update={"keep": (*precision.keep, *map(glob.escape, names))})
