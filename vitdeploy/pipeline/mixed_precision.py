"""Mixed precision: the linears that cost most accuracy stay in float, until the rest fits the budget."""

from __future__ import annotations

import glob
from collections.abc import Sequence

from vitdeploy.artifact import Trial
from vitdeploy.calibrate.precision import Precision
from vitdeploy.frozen import replace
from vitdeploy.pipeline.accuracy_budget import AccuracyBudget
from vitdeploy.pipeline.candidate import Candidate, CandidateBuilder


def fit_budget(
    builder: CandidateBuilder, precision: Precision, budget: AccuracyBudget, *, whole: bool = False
) -> tuple[Candidate | None, list[Trial]]:
    """Find the candidate of this precision that fits the budget with the fewest linears in float.

    At first all linears are quantized. If that loses too much, the worst 1, 2, 4, … stay in float until it fits; then a
    bisection finds the smallest number. The worst linears add most noise to the outputs for the work that they save.

    Args:
        builder: makes the candidates.
        precision: with its options.
        budget: judges them.
        whole: try all linears only, because each try takes long.

    Returns:
        The candidate, or None if none fits; and the trials, with that of the candidate last.
    """
    first = builder.make(precision)
    trials = [budget.judge(first)]
    if budget.holds(trials[0]):
        return first, trials
    if whole or not precision.per_linear or trials[0].lost is None:
        first.discard()
        return None, trials
    order = builder.worst_first(first)
    fixed = replace(precision, smooth_alpha="off" if first.alpha is None else first.alpha)
    first.discard()
    fitting: dict[int, Candidate] = {}

    def fits(count: int) -> bool:
        candidate = builder.make(_keep_in_float(fixed, order[:count]))
        trials.append(budget.judge(candidate))
        if not budget.holds(trials[-1]):
            candidate.discard()
            return False
        fitting[count] = candidate
        return True

    counts = [*_powers_of_two(len(order) - 1), len(order) - 1]  # at least one linear is quantized
    index = next((i for i, count in enumerate(counts) if count > 0 and fits(count)), None)
    if index is None:
        return None, trials
    low, high = counts[index - 1] if index else 0, counts[index]  # low does not fit, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    for count, candidate in fitting.items():
        if count != high:
            candidate.discard()
    final = next(t for t in trials if t.float_linears == fitting[high].float_linears and budget.holds(t))
    return fitting[high], [*(t for t in trials if t is not final), final]


def _powers_of_two(below: int) -> list[int]:
    return [1 << i for i in range(max(0, below - 1).bit_length())]


def _keep_in_float(precision: Precision, names: Sequence[str]) -> Precision:
    """Return the precision with these linears in float too. The names are literal, not patterns."""
    return replace(precision, keep=(*precision.keep, *map(glob.escape, names)))
