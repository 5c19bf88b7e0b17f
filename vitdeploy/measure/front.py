"""Trials side by side: which may be compared, by which latency, and which of them nothing beats.

Each trial was timed in turns with FP32 PyTorch, at its own time. The machine's speed changes meanwhile, and the
speed-ups do not. So the latency of a trial is that of the reference, the same for all trials of a model with the same
input shape, outputs and version of the reference's library, divided by the trial's speed-up. Without a speed-up it is
the p50 as it was timed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from vitdeploy.evidence import Basis, SweepRow, TrialRecord
from vitdeploy.frozen import replace

_NOTED_DRIFT = 0.1
"""A larger change of the reference's p50 between the trials of one model is noted."""
LATENCY_DOUBT = "latency: "
"""The start of a doubt about the bench of a trial."""
_Key = tuple[object, ...]


def compare(records: Sequence[TrialRecord]) -> list[SweepRow]:
    """Return the trials with their latencies, groups and places on the front, in the same order."""
    references = _pool_references(records)
    numbers: dict[tuple[str, ...], int] = {}
    groups: dict[int, list[SweepRow]] = {}
    rows = []
    for record in records:
        group = 0
        if record.status == "done" and record.deployed is not None and record.p50_ms is not None:
            group = numbers.setdefault(_conditions(record), len(numbers) + 1)
        latency, interval, basis = _find_latency(record, references)
        facts = {"latency_ms": latency, "latency_ci95": interval, "basis": basis, "group": group}
        rows.append(SweepRow(**{**dict(record), **facts}))
        groups.setdefault(group, []).append(rows[-1])
    best = {id(row) for group, members in groups.items() if group for row in find_front(members)}
    return [replace(row, front=id(row) in best) for row in rows]


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


def find_beaten(rows: Sequence[SweepRow]) -> set[str]:
    """Return the names of the trials that a longer bench cannot bring onto the front.

    A valid trial of the group is at least as accurate and certainly faster: the two intervals of latency do not
    overlap. Between two models they are widened by the changes of the references' p50. A trial whose bench is in doubt
    is not among them: a disturbed bench says nothing about how slow the trial is.
    """
    references = _pool_references(rows)
    groups: dict[int, list[SweepRow]] = {}
    for row in rows:
        if row.group:
            groups.setdefault(row.group, []).append(row)
    return {name for members in groups.values() for name in _find_beaten_in_group(members, references)}


def _find_beaten_in_group(rows: Sequence[SweepRow], references: _References) -> Iterable[str]:
    """Yield the trials of one group that are beaten. They are visited from the most to the least accurate one."""
    fastest = math.inf  # the lowest upper end of those that are at least as accurate, widened by their drift
    fastest_of: dict[_Key, float] = {}  # the same without drift, of the trials with one reference
    order = sorted(rows, key=_goodness, reverse=True)
    for _, equals in groupby(order, key=_goodness):
        equally_good = list(equals)
        for row in equally_good:
            if row.valid and row.latency_ci95 is not None:
                key, high = _reference_key(row), row.latency_ci95[1]
                fastest = min(fastest, high * references.drift(row))
                fastest_of[key] = min(fastest_of.get(key, math.inf), high)
        for row in equally_good:
            if row.latency_ci95 is None or _is_bench_doubtful(row):
                continue
            low = row.latency_ci95[0]
            if fastest_of.get(_reference_key(row), math.inf) < low or fastest * references.drift(row) < low:
                yield row.name


def describe_comparison(rows: Sequence[SweepRow]) -> list[str]:
    """Return remarks about what is compared, and how well."""
    notes = []
    timed = [row for row in rows if row.group]
    references = _pool_references(rows)
    if any(row.basis == "speed-up" for row in timed):
        notes.append(
            "latencies are the p50 of the FP32 reference (the median over the trials with the same model, input shape, "
            "outputs and version of PyTorch) divided by the speed-up, which was timed in turns with it"
        )
    if any(row.basis == "p50" for row in timed):
        notes.append("latencies without a speed-up over FP32 are the p50 as it was timed, at different times")
    groups = sorted({row.group for row in timed})
    if len(groups) > 1:
        conditions = [list_conditions(next(row for row in timed if row.group == group)) for group in groups]
        names = [name for name in conditions[0] if len({own[name] for own in conditions}) > 1]
        notes.append(f"{len(groups)} groups are not compared with each other, because these differ: {', '.join(names)}")
    for group in groups:
        members = [row for row in timed if row.group == group]
        notes += _describe_engines(group, members)
        models: dict[_Key, SweepRow] = {}
        for row in members:
            models.setdefault(_reference_key(row), row)
        for own in models.values():
            drift = references.drift(own) - 1
            if drift > _NOTED_DRIFT and len(models) > 1:
                notes.append(
                    f"FP32 {own.model} was up to {100 * drift:.0f} % slower in some trials than in others, so its "
                    "latencies beside those of other models are uncertain by as much"
                )
    return notes


def _describe_engines(group: int, rows: Iterable[SweepRow]) -> Iterable[str]:
    """Yield a remark about each engine that ran in several versions in a group. They may be compared."""
    versions: dict[str, set[str]] = {}
    for row in rows:
        name, _, version = row.engine.partition(" ")
        if version:
            versions.setdefault(name, set()).add(version)
    for name, several in sorted(versions.items()):
        if len(several) > 1:
            yield f"group {group} was timed with several versions of {name}: {', '.join(sorted(several))}"


def list_conditions(row: TrialRecord) -> dict[str, str]:
    """Return what has to be equal for two trials to be compared, by its name.

    The data is read in one order, so as many samples of it are the same ones. A trial that alone could not read an
    image has fewer, and is not compared. The digests of samples are no condition: they are of the pixels that the model
    gets, and differ between two sizes of the image.
    """
    metric = f"{row.metric} ({row.unit})" if row.unit else row.metric
    return {
        "machine": row.machine,
        "device": row.device.upper(),
        "timing": row.timing,
        "version of the reference": row.reference_version or ("not recorded" if row.reference_p50_ms else "none"),
        "metric": metric,
        "data": row.data_digest,
        "number of samples": f"{row.samples:,}",
    }


def _conditions(row: TrialRecord) -> tuple[str, ...]:
    return tuple(list_conditions(row).values())


def _find_latency(row: TrialRecord, references: _References) -> tuple[float | None, tuple[float, float] | None, Basis]:
    if row.p50_ms is None:
        return None, None, ""
    common = references.find_median(row)
    if row.speedup is None or row.speedup_ci95 is None or common is None or row.speedup_ci95[0] <= 0:
        return row.p50_ms, row.p50_ci95, "p50"
    low, high = row.speedup_ci95
    return common / row.speedup, (common / high, common / low), "speed-up"


@dataclass(frozen=True)
class _References:
    """The p50 of the FP32 references, in ms: for each of them the median, the lowest and the highest."""

    facts: dict[_Key, tuple[float, float, float]]

    def find_median(self, row: TrialRecord) -> float | None:
        """Return the median p50 of a trial's reference over all trials that were timed with it; None without one."""
        fact = self.facts.get(_reference_key(row))
        return None if fact is None else fact[0]

    def drift(self, row: TrialRecord) -> float:
        """Return how many times the slowest p50 of a trial's reference is the fastest."""
        _, low, high = self.facts.get(_reference_key(row), (1.0, 1.0, 1.0))
        return high / low


def _pool_references(rows: Iterable[TrialRecord]) -> _References:
    """Collect the p50 of each reference: of the benches without a doubt, or of all if there is none."""
    sure: dict[_Key, list[float]] = {}
    doubtful: dict[_Key, list[float]] = {}
    for row in rows:
        if row.reference_p50_ms:
            into = doubtful if _is_bench_doubtful(row) else sure
            into.setdefault(_reference_key(row), []).append(row.reference_p50_ms)
    return _References({key: (median(p50s), min(p50s), max(p50s)) for key, p50s in {**doubtful, **sure}.items()})


def _reference_key(row: TrialRecord) -> _Key:
    """Return what has to be equal for two trials to have been timed with the same reference."""
    conditions = (row.machine, row.device.upper(), row.timing, row.reference_version)
    return (*conditions, row.model_digest, row.model_code, row.input_shape, row.outputs)


def _is_bench_doubtful(row: TrialRecord) -> bool:
    return any(doubt.startswith(LATENCY_DOUBT) for doubt in row.doubts)


def _goodness(row: TrialRecord) -> float:
    """Return the metric with a sign by which more is better; NaN is the worst."""
    if row.deployed is None or math.isnan(row.deployed):
        return -math.inf
    return row.deployed if row.better == "higher" else -row.deployed
