"""Trials side by side: which may be compared, by which latency, and which of them nothing beats.

Each trial was timed in turns with FP32 PyTorch, at its own time. The machine's speed changes meanwhile, and the
speed-ups do not. So the latency of a trial is that of the reference, the same for all trials of a model, divided by the
trial's speed-up. Without a speed-up it is the p50 as it was timed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from vitdeploy.evidence import Basis, SweepRow, TrialRecord
from vitdeploy.frozen import replace

_NOTED_DRIFT = 0.1
"""A larger change of the reference's p50 between the trials of one model is noted."""


def compare(records: Sequence[TrialRecord]) -> list[SweepRow]:
    """Return the trials with their latencies, groups and places on the front, in the same order."""
    rows = [SweepRow(**dict(record)) for record in records]
    numbers: dict[tuple[str, ...], int] = {}
    placed = []
    for row in rows:
        group = 0
        if row.status == "done" and row.deployed is not None and row.p50_ms is not None:
            group = numbers.setdefault(_conditions(row), len(numbers) + 1)
        latency, interval, basis = _find_latency(row, rows)
        placed.append(replace(row, latency_ms=latency, latency_ci95=interval, basis=basis, group=group))
    best = {row.name for number in numbers.values() for row in find_front([r for r in placed if r.group == number])}
    return [replace(row, front=row.name in best) for row in placed]


def find_front(rows: Iterable[SweepRow]) -> list[SweepRow]:
    """Return the valid trials of one group than which none is both faster and more accurate; fastest first."""
    able = [(row, row.latency_ms, _goodness(row)) for row in rows if row.valid and row.latency_ms is not None]
    front: list[SweepRow] = []
    best = -math.inf
    for row, _, goodness in sorted(able, key=lambda one: (one[1], -one[2])):
        if goodness > best:
            front.append(row)
            best = goodness
    return front


def is_certainly_beaten(row: SweepRow, rows: Iterable[SweepRow]) -> bool:
    """Return True if a longer bench cannot bring a trial onto the front.

    A valid trial of its group is at least as accurate and certainly faster: the two intervals of latency do not
    overlap. Between two models they are widened by the changes of the references' p50.
    """
    if row.latency_ci95 is None or row.group == 0:
        return False
    others = [other for other in rows if other.group == row.group]
    for other in others:
        if other.name == row.name or not other.valid or other.latency_ci95 is None:
            continue
        wider = 1.0
        if other.model_digest != row.model_digest:
            wider = _drift(other, others) * _drift(row, others)
        if _goodness(other) >= _goodness(row) and other.latency_ci95[1] * wider < row.latency_ci95[0]:
            return True
    return False


def describe_comparison(rows: Sequence[SweepRow]) -> list[str]:
    """Return remarks about what is compared, and how well."""
    notes = []
    timed = [row for row in rows if row.group]
    if any(row.basis == "speed-up" for row in timed):
        notes.append(
            "latencies are the p50 of the FP32 reference (the median over the trials of a model) divided by the "
            "speed-up, which was timed in turns with it"
        )
    if any(row.basis == "p50" for row in timed):
        notes.append("latencies without a speed-up over FP32 are the p50 as it was timed, at different times")
    groups = sorted({row.group for row in timed})
    if len(groups) > 1:
        notes.append(
            f"{len(groups)} groups are not compared with each other: they have another machine, device, data, batch "
            "size or number of threads"
        )
    for group in groups:
        members = [row for row in timed if row.group == group]
        models = list(dict.fromkeys(row.model_digest for row in members))
        for digest in models:
            own = next(row for row in members if row.model_digest == digest)
            drift = _drift(own, members) - 1
            if drift > _NOTED_DRIFT and len(models) > 1:
                notes.append(
                    f"FP32 {own.model} was up to {100 * drift:.0f} % slower in some trials than in others, so its "
                    "latencies beside those of other models are uncertain by as much"
                )
    return notes


def _conditions(row: TrialRecord) -> tuple[str, ...]:
    """Return what has to be equal for two trials to be compared."""
    return (row.machine, row.device.upper(), row.timing, row.metric, row.unit, row.data_digest)


def _find_latency(row: SweepRow, rows: Iterable[SweepRow]) -> tuple[float | None, tuple[float, float] | None, Basis]:
    if row.p50_ms is None:
        return None, None, ""
    references = _references(row, rows)
    if row.speedup is None or row.speedup_ci95 is None or not references or row.speedup_ci95[0] <= 0:
        return row.p50_ms, row.p50_ci95, "p50"
    common, (low, high) = median(references), row.speedup_ci95
    return common / row.speedup, (common / high, common / low), "speed-up"


def _references(row: TrialRecord, rows: Iterable[TrialRecord]) -> list[float]:
    """Return the p50 of the reference in each trial of the same model, machine and conditions."""
    key = (row.machine, row.device.upper(), row.timing, row.model_digest)
    return [
        other.reference_p50_ms
        for other in rows
        if other.reference_p50_ms and (other.machine, other.device.upper(), other.timing, other.model_digest) == key
    ]


def _drift(row: TrialRecord, rows: Iterable[TrialRecord]) -> float:
    """Return how many times the slowest p50 of a model's reference is the fastest."""
    references = _references(row, rows)
    return max(references) / min(references) if references else 1.0


def _goodness(row: TrialRecord) -> float:
    """Return the metric with a sign by which more is better; NaN is the worst."""
    if row.deployed is None or math.isnan(row.deployed):
        return -math.inf
    return row.deployed if row.better == "higher" else -row.deployed
