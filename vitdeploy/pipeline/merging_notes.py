"""The notes of a search for merges: why a schedule was not kept, and what was not decided."""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.artifact import Trial
from vitdeploy.evidence import Interval
from vitdeploy.pipeline.accuracy_budget import AccuracyBudget
from vitdeploy.pipeline.fastest import is_undecided, suggest_seconds
from vitdeploy.pipeline.token_schedules import count_left
from vitdeploy.recipe import Schedule, describe_schedule


def explain_loser(gain: Interval | None, *, wins: bool) -> str:
    """Return the reason why a schedule was not kept.

    Args:
        gain: how many times as fast it is as without merging; None if that is doubtful.
        wins: another schedule was kept.
    """
    if gain is None:
        return "its speed is in doubt"
    if wins:
        return "another schedule is faster"
    return "not certainly faster than without merging" if is_undecided(gain) else "not faster than without merging"


def describe_doubt(schedules: Sequence[Schedule], seconds: float | None) -> str:
    """Return the note that no measurement decided, with the schedule that leaves fewest tokens.

    Args:
        schedules: those within the budget.
        seconds: the recipe's, for each comparison of speed.
    """
    depth = 1 + max(block for schedule in schedules for block in schedule)
    fewest = min(schedules, key=lambda schedule: sum(count_left(schedule, depth)))
    return (
        "it is in doubt whether merging is faster. Of what loses no more than allowed, "
        f"--merge-tokens {describe_schedule(fewest)} leaves fewest tokens. {suggest_seconds(seconds)} measures longer"
    )


def explain_nothing(trials: Sequence[Trial], budget: AccuracyBudget | None) -> str:
    """Return the note that no schedule holds, with the one that is nearest to the budget."""
    judged = [trial for trial in trials if trial.lost is not None]
    if not judged or budget is None:
        return f"auto merged no tokens: {trials[0].why}"
    nearest = min(judged, key=lambda trial: trial.lost or 0.0)
    return (
        f"auto merged no tokens: nothing keeps the budget of {budget.limit:g} points. The nearest, "
        f"{describe_schedule(nearest.merged)} in {nearest.precision}, loses {nearest.lost:.2f}"
    )
