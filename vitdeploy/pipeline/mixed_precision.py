"""Mixed precision: the linears that cost most accuracy stay in float, until the rest fits the budget."""

from __future__ import annotations

import glob
from collections.abc import Sequence

from vitdeploy.artifact import Trial
from vitdeploy.calibrate.precision import Precision
from vitdeploy.errors import CompileError, QuantizeError
from vitdeploy.frozen import replace
from vitdeploy.pipeline.accuracy_budget import AccuracyBudget
from vitdeploy.pipeline.candidate import Candidate, CandidateBuilder

_TOO_MANY = "fewer linears in float keep the budget too"


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

    Raises:
        VitdeployError: the precision is not possible at all. That single linears cannot be in float is a trial.
    """
    first = builder.make(precision)
    trials = [budget.judge(first)]
    if budget.holds(trials[0]):
        return first, trials
    if whole or not precision.per_linear or trials[0].lost is None:
        first.discard()
        return None, trials
    try:
        order = builder.worst_first(first)
    except QuantizeError as error:
        first.discard()
        return None, [replace(trials[0], why=f"{trials[0].why}, and no linear stays in float: {error.message}")]
    fixed = replace(precision, smooth_alpha="off" if first.alpha is None else first.alpha)
    first.discard()
    fitting: dict[int, Candidate] = {}

    def fits(count: int) -> bool:
        candidate: Candidate | None = None
        try:
            candidate = builder.make(_keep_in_float(fixed, order[:count]))
            trials.append(budget.judge(candidate))
        except (QuantizeError, CompileError) as error:  # this number is not possible; others may be
            floats = trials[0].float_linears + count
            trials.append(_fail(trials[0], floats, error.message))
        if candidate is None or not budget.holds(trials[-1]):
            if candidate is not None:
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
    others = [replace(trial, why=trial.why or _TOO_MANY) for trial in trials if trial is not final]
    return fitting[high], [*others, final]


def _fail(first: Trial, float_linears: int, why: str) -> Trial:
    """Return the trial of a candidate that could not be made or judged, which is like the first one but for linears."""
    return replace(first, float_linears=float_linears, lost=None, judged_by=None, images=0, why=why)


def _powers_of_two(below: int) -> list[int]:
    return [1 << i for i in range(max(0, below - 1).bit_length())]


def _keep_in_float(precision: Precision, names: Sequence[str]) -> Precision:
    """Return the precision with these linears in float too. The names are literal, not patterns."""
    return replace(precision, keep=(*precision.keep, *map(glob.escape, names)))
