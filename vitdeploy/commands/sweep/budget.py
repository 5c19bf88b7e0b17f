"""Time: how long a trial will take, and which benches are worth more of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

from vitdeploy.commands.sweep.axes import HERE, HOST
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.errors import UsageError
from vitdeploy.evidence import SweepEstimate, SweepRow, TrialRecord
from vitdeploy.measure.front import find_beaten

SHORT_SECONDS = 2.0
"""The bench of every trial when there is a budget; only those that may be on the front get the recipe's time."""
_OVERHEAD = 1.5
"""A bench opens all sides anew in each round, so that it takes longer than it measures."""
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[smhd])+")


def parse_duration(text: str) -> float:
    """Return the seconds of `45s`, `90m`, `2h`, `1.5h` or `1h30m`.

    Raises:
        UsageError: it is none of these, or no time at all.
    """
    if _DURATION.fullmatch(text) is None:
        raise UsageError(f"{text!r} is not a time", fix="Give a number with s, m, h or d, such as 90m or 1h30m.")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9.]+)([smhd])", text))
    if not 0 < seconds < math.inf:
        raise UsageError(f"{text!r} is no time at all", fix="Give a longer time.")
    return seconds


def estimate(
    pending: Sequence[TrialSpec], records: Mapping[str, TrialRecord], longer: Sequence[float] = ()
) -> SweepEstimate:
    """Estimate the time of the work that is left, from the trials that are finished; see `expect_seconds`.

    Args:
        pending: the trials that are left.
        records: the finished trials.
        longer: the seconds of each bench that is done again, for longer.
    """
    finished = _list_finished(records.values())
    if not pending and not longer:
        return SweepEstimate(trials=0, seconds=0.0, basis="nothing is left to do")
    seconds = sum(expect_seconds(trial, finished, trial.recipe.bench.seconds) for trial in pending)
    seconds += _OVERHEAD * sum(longer)
    if not pending:
        basis = f"{len(longer)} longer benches of finished trials"
    elif not finished:
        basis = "no trial is finished yet, so this is the time of the benches alone"
    else:
        basis = f"{len(finished)} finished trials"
    return SweepEstimate(trials=len(pending), seconds=round(seconds, 1), basis=basis)


def expect_seconds(trial: TrialSpec, records: Iterable[TrialRecord], bench_s: float) -> float:
    """Return the time that a trial is expected to take, in seconds.

    It takes as long as the finished trials of its model, target and precision took; or of its model; or all of them.
    Those of its own host count, if there are any. Before any is finished only the time of its bench is known.

    Args:
        trial: the trial.
        records: the finished trials.
        bench_s: the seconds of its bench.
    """
    recipe, finished = trial.recipe, _list_finished(records)
    if not finished:
        return _OVERHEAD * bench_s
    host = trial.axes.get(HOST, HERE)
    finished = [record for record in finished if record.axes.get(HOST, HERE) == host] or finished
    of_model = [record for record in finished if record.model == recipe.model.spec]
    alike = [
        r for r in of_model if (r.target, r.precision) == (recipe.target.kind, recipe.precision.kind or r.precision)
    ]
    return mean(record.seconds for record in alike or of_model or finished)


def _list_finished(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.status in ("done", "bundle") and record.seconds > 0]


def list_short(rows: Sequence[SweepRow], seconds: Mapping[str, float]) -> list[SweepRow]:
    """Return the trials that were timed for less than their recipe asks for, by trial -> seconds."""
    return [
        row for row in rows if row.status == "done" and row.name in seconds and row.bench_seconds < seconds[row.name]
    ]


def choose_longer(rows: Sequence[SweepRow], seconds: Mapping[str, float], left_s: float) -> str | None:
    """Return the trial whose bench should be lengthened next; None if no more time helps.

    With a budget a bench helps only if the trial may still be on the front. The widest interval comes first.

    Args:
        rows: all trials, side by side.
        seconds: trial -> the time that its recipe asks for.
        left_s: the time that is left; infinite without a budget.
    """
    beaten = set() if math.isinf(left_s) else find_beaten(rows)
    able = [
        row for row in list_short(rows, seconds) if _OVERHEAD * seconds[row.name] <= left_s and row.name not in beaten
    ]
    return max(able, key=_relative_width).name if able else None


def _relative_width(row: SweepRow) -> float:
    if row.latency_ci95 is None or not row.latency_ms:
        return math.inf
    low, high = row.latency_ci95
    return (high - low) / row.latency_ms
