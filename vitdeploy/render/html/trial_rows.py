"""The rows of a table of trials, or of artifacts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitdeploy.evidence import SweepRow
from vitdeploy.render import numbers
from vitdeploy.render.numbers import NOTHING, three_digits

_MIB = 1 << 20
_VERDICTS = {"pass": "within the limits", "fail": "beyond the limits", "invalid": "not decided"}


@dataclass(frozen=True)
class TrialRow:
    """One trial as text: its place and its verdict, each cell with its interval, the figures that the filters read."""

    number: int
    name: str
    axes: tuple[tuple[str, str], ...]
    tone: int
    status: str
    states: tuple[str, ...]
    why: str
    cells: tuple[tuple[str, str], ...]
    figures: tuple[tuple[str, str], ...]


def make_head(rows: Sequence[SweepRow]) -> tuple[str, ...]:
    """Return the titles of the columns with figures."""
    metrics = list(dict.fromkeys(row.metric for row in rows if row.metric))
    metric = metrics[0] if len(metrics) == 1 else "metric"
    return (metric, "drop", "latency ms", "speed-up", "size", "peak memory", "fused")


def make_row(number: int, row: SweepRow, tone: int) -> TrialRow:
    """Return one trial as text.

    Args:
        number: its number in the charts.
        row: the trial.
        tone: the number of the colour of its model.
    """
    figures = {
        "latency": row.latency_ms,
        "drop": row.drop,
        "speedup": row.speedup,
        "size": None if row.size_bytes is None else row.size_bytes / _MIB,
        "memory": None if row.memory_bytes is None else row.memory_bytes / _MIB,
    }
    cells = (
        (NOTHING if row.deployed is None else three_digits(row.deployed), ""),
        (NOTHING if row.drop is None else numbers.without_minus_zero(row.drop), _interval(row.drop_ci95)),
        (NOTHING if row.latency_ms is None else three_digits(row.latency_ms), _interval(row.latency_ci95)),
        (NOTHING if row.speedup is None else f"{row.speedup:.2f}", _interval(row.speedup_ci95)),
        (NOTHING if row.size_bytes is None else numbers.size(row.size_bytes), ""),
        (NOTHING if row.memory_bytes is None else numbers.size(row.memory_bytes), ""),
        (NOTHING if row.sites is None else f"{row.fused} of {row.sites}", ""),
    )
    states, why = _describe_state(row)
    known = tuple((name, repr(float(value))) for name, value in figures.items() if value is not None)
    return TrialRow(number, row.name, tuple(row.axes.items()), tone, row.status, states, why, cells, known)


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{three_digits(ends[0])} to {three_digits(ends[1])}"


def _describe_state(row: SweepRow) -> tuple[tuple[str, ...], str]:
    """Return the place of a trial among the others and the verdict on its limits, each in a word; and the reasons."""
    if row.status == "failed":
        return ("failed",), f"at {row.step}: {row.reason}"
    if row.status in ("bundle", "pending"):
        return ("not measured",), row.reason
    place = "in doubt" if row.doubts else "not compared" if row.group == 0 else "front" if row.front else "beaten"
    states = (place, _VERDICTS[row.verdict]) if row.verdict else (place,)
    return states, "; ".join((*row.doubts, *row.failing))
