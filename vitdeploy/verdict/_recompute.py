"""Compute the figures of bench and eval again from their raw data, and compare them with the stored ones."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np

from vitdeploy import tasks
from vitdeploy.errors import MeasureError, VitdeployError
from vitdeploy.evidence import Bench, EndToEnd, Eval, Pair, Run, Sustained
from vitdeploy.evidence.fact import Fact
from vitdeploy.frozen import replace
from vitdeploy.measure import conditions, doubts
from vitdeploy.measure.accuracy import compare_outcomes
from vitdeploy.measure.intervals import speedup_interval
from vitdeploy.measure.latency import MIN_BLOCKS, compute_figures
from vitdeploy.measure.samples import Outcomes, count_once, unpack
from vitdeploy.measure.scenarios import runs_in_query
from vitdeploy.measure.statistics import percentile
from vitdeploy.measure.sustained import WINDOW, summarize
from vitdeploy.recipe import TaskSpec
from vitdeploy.verdict._energy import recompute_power

MAX_SAMPLES = 2_000_000
"""More latencies of one run than any bench takes, and few enough for a bootstrap."""

_ROUNDING = 1e-6
"""Relative: NumPy and SciPy of other versions or CPUs sum in another order."""
_EVAL_FIELDS = (
    "task", "n", "metrics", "agreement", "flips", "p_value", "test", "discordance", "nonfinite", "doubts",
)  # fmt: skip
_BENCH_AGAIN = "Run vitdeploy bench again."
_MAY_RAISE = (VitdeployError, ValueError, KeyError, IndexError, TypeError, ArithmeticError, MemoryError)


def recompute_bench(bench: Bench) -> Bench:
    """Return a bench with all figures computed from its blocks. Runs without samples stay as they are.

    It is not valid if the samples or the conditions give a doubt.

    Raises:
        MeasureError: the samples are impossible, or are not pairs.
    """
    runs: list[Run] = []
    reasons: list[str] = []
    for batch, group in groupby(bench.runs, key=lambda run: run.batch):
        timed = list(group)
        if all(not run.blocks for run in timed):
            runs += timed
            continue
        _check_samples(timed)
        reference = next((run for run in timed if run.role == "reference"), None)
        images = batch * runs_in_query(bench.scenario, batch)
        runs += [_recompute_run(run, None if run is reference else reference, images) for run in timed]
        reasons += [*doubts.find_doubts(timed), *_find_condition_doubts(bench, batch, len(timed[0].blocks))]
    findings = bench.doubts if bench.doubts or not reasons else tuple(reasons)
    bench = replace(
        bench,
        end_to_end=None if bench.end_to_end is None else recompute_end_to_end(bench.end_to_end),
        power=None if bench.power is None else recompute_power(bench.power),
        sustained=None if bench.sustained is None else recompute_sustained(bench.sustained),
    )
    return replace(bench, runs=tuple(runs), pairs=tuple(_recompute_pairs(runs)), doubts=findings, valid=not findings)


def recompute_end_to_end(timed: EndToEnd) -> EndToEnd:
    """Return the times with figures computed from the blocks.

    Raises:
        MeasureError: there are too few samples, or impossible ones.
    """
    _check_blocks("end to end", timed.blocks)
    figures = compute_figures(timed.blocks, (), 1, None)
    names = ("samples", "p50_ms", "p90_ms", "p99_ms", "p50_ci95", "p90_ci95", "p99_ci95")
    return replace(timed, **{name: getattr(figures, name) for name in names})


def recompute_sustained(sustained: Sustained) -> Sustained:
    """Return a sustained run with figures, findings and doubts computed from its blocks and its course.

    Raises:
        MeasureError: there are too few samples or blocks, or impossible ones.
    """
    _check_blocks("the sustained run", sustained.blocks)
    course = sustained.course
    if not WINDOW <= len(course) <= MAX_SAMPLES or len(sustained.blocks) != WINDOW or sustained.batch < 1:
        raise MeasureError(f"the sustained run has {len(course)} blocks, which no bench has", fix=_BENCH_AGAIN)
    medians = [percentile(block, 50) for block in sustained.blocks]
    if any(not _are_equal(block.p50_ms, p50) for block, p50 in zip(course[-WINDOW:], medians, strict=True)):
        raise MeasureError("the course of the sustained run is not that of its samples", fix=_BENCH_AGAIN)
    if not all(0 < block.p50_ms < math.inf for block in course):
        raise MeasureError("the sustained run has times that are not above 0", fix=_BENCH_AGAIN)
    if not all(math.isfinite(block.minutes) and math.isfinite(block.celsius or 0) for block in course):
        raise MeasureError(
            "the course of the sustained run has a time or temperature that is no number", fix=_BENCH_AGAIN
        )
    power = None if sustained.power is None else recompute_power(sustained.power)
    limit, finite = sustained.limit_minutes, sustained.finite
    return summarize(course, sustained.blocks, limit, batch=sustained.batch, finite=finite, power=power)


def _check_blocks(name: str, blocks: Sequence[Sequence[float]]) -> None:
    """Check the samples of something that was timed alone.

    Raises:
        MeasureError: there are too few or too many, or impossible ones.
    """
    flat = [sample for block in blocks for sample in block]
    if len(blocks) < MIN_BLOCKS or not all(blocks) or len(flat) > MAX_SAMPLES:
        raise MeasureError(f"{name} has {len(flat):,} samples in {len(blocks)} blocks", fix=_BENCH_AGAIN)
    if not all(0 < sample < math.inf for sample in flat):
        raise MeasureError(f"{name} has times that are not above 0", fix=_BENCH_AGAIN)


def recompute_evaluation(
    spec: TaskSpec, evaluation: Eval, raw: bytes, labels: tuple[str, ...] | None = None
) -> tuple[Eval, Outcomes]:
    """Return an evaluation with all figures computed from its samples, each image counted once; and the samples.

    Args:
        spec: the artifact's task.
        evaluation: the stored evaluation.
        raw: the file with the samples.
        labels: the names of the model's classes.

    Raises:
        MeasureError: the file is not the one that the evaluation names, is damaged, or is not of this task.
    """
    if hashlib.sha256(raw).hexdigest() != evaluation.samples:
        raise MeasureError("the samples are not those that eval.json names", fix="Run vitdeploy eval again.")
    fresh, outcomes = _compare(spec.model_dump_json(), raw, evaluation.class_names or labels)
    return replace(evaluation, **{name: getattr(fresh, name) for name in _EVAL_FIELDS}), outcomes


@lru_cache(maxsize=4)
def _compare(spec: str, raw: bytes, names: tuple[str, ...] | None) -> tuple[Eval, Outcomes]:
    """Compare the outcomes in a file. `run` judges and reports the same file, and resampling takes long."""
    task, outcomes = tasks.find(TaskSpec.model_validate_json(spec)), unpack(raw)
    try:
        _check_statistics(task, outcomes)
        with np.errstate(all="ignore"):  # what is not finite is found afterwards
            return compare_outcomes(task, count_once(outcomes), names), outcomes
    except _MAY_RAISE as error:
        reason = error.message if isinstance(error, VitdeployError) else f"{type(error).__name__} {error}"
        raise MeasureError(
            f"the samples are not those of a {task.name} task: {reason}", fix="Run vitdeploy eval again."
        ) from None


def list_differences(stored: Bench | Eval, fresh: Bench | Eval) -> list[str]:
    """Return the figures of a stored piece of evidence that differ from those computed from its raw data."""
    if isinstance(stored, Eval) or isinstance(fresh, Eval):
        names = set(_EVAL_FIELDS)
        return list_different_values("", stored.model_dump(include=names), fresh.model_dump(include=names))
    before, now = (
        {
            "runs": [_figures(run) for run in side.runs],
            "pairs": side.pairs,
            "end_to_end": side.end_to_end,
            "power": side.power,
            "sustained": _sustained_figures(side.sustained),
        }
        for side in (stored, fresh)
    )
    return list_different_values("", before, now)


def list_different_values(path: str, stored: object, fresh: object, *, source: str = "its samples give") -> list[str]:
    """Return `PATH is STORED, but SOURCE FRESH` for each difference below `path`, up to rounding."""
    differences = _compare_values(path, stored, fresh)
    return [f"{place} is {_shorten(old)}, but {source} {_shorten(new)}" for place, old, new in differences]


def _sustained_figures(sustained: Sustained | None) -> Mapping[str, object] | None:
    return None if sustained is None else sustained.model_dump(exclude={"blocks", "course"})


def _figures(run: Run) -> dict[str, object]:
    return run.model_dump(exclude={"blocks", "rounds", "startup", "warm_up", "effective"})


def _compare_values(path: str, stored: object, fresh: object) -> Iterator[tuple[str, object, object]]:
    """Yield the path and both values of each difference."""
    if isinstance(stored, Fact) and isinstance(fresh, Fact):
        yield from _compare_values(path, stored.model_dump(), fresh.model_dump())
    elif isinstance(stored, Mapping) and isinstance(fresh, Mapping) and stored.keys() == fresh.keys():
        for key in stored:
            yield from _compare_values(f"{path}.{key}".removeprefix("."), stored[key], fresh[key])
    elif isinstance(stored, (list, tuple)) and isinstance(fresh, (list, tuple)) and len(stored) == len(fresh):
        for place, pair in enumerate(zip(stored, fresh, strict=True)):
            yield from _compare_values(f"{path}.{place}", *pair)
    elif not _are_equal(stored, fresh):
        yield path, stored, fresh


def _are_equal(stored: object, fresh: object) -> bool:
    if isinstance(stored, int) and isinstance(fresh, int):
        return stored == fresh
    if isinstance(stored, (int, float)) and isinstance(fresh, (int, float)):
        return math.isclose(stored, fresh, rel_tol=_ROUNDING, abs_tol=1e-9) or (stored != stored and fresh != fresh)
    return stored == fresh


def _shorten(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _check_samples(runs: Sequence[Run]) -> None:
    """Check that all runs of a batch size have samples that can be paired.

    Raises:
        MeasureError: they have not.
    """
    fix = "Run vitdeploy bench again."
    count = len(runs[0].blocks)
    if runs[0].batch < 1:
        raise MeasureError(f"{runs[0].name} has batches of {runs[0].batch} images", fix=fix)
    for run in runs:
        flat = [sample for block in run.blocks for sample in block]
        if len(run.blocks) != count or run.rounds != runs[0].rounds or (run.rounds and sum(run.rounds) != count):
            raise MeasureError(f"the samples of {run.name} and {runs[0].name} are not pairs", fix=fix)
        if count < MIN_BLOCKS or any(not block for block in run.blocks) or len(flat) > MAX_SAMPLES:
            raise MeasureError(f"{run.name} has {len(flat):,} samples in {count} blocks, which no bench has", fix=fix)
        if any(places < 1 for places in run.rounds) or not all(0 < sample < math.inf for sample in flat):
            raise MeasureError(f"{run.name} has times that are not above 0", fix=fix)


def _recompute_run(run: Run, reference: Run | None, images: int) -> Run:
    figures = compute_figures(run.blocks, run.rounds, images, None if reference is None else reference.blocks)
    fresh = replace(run, **figures._asdict())
    if run.p50_ci95 is None:  # an older vitdeploy did not compute the intervals of percentiles
        return replace(fresh, p50_ci95=None, p90_ci95=None, p99_ci95=None)
    return fresh


def _recompute_pairs(runs: Sequence[Run]) -> Iterator[Pair]:
    """Compare the other artifacts of each batch size with the first one, as bench does."""
    for batch, group in groupby(runs, key=lambda run: run.batch):
        timed = [run for run in group if run.role == "artifact" and run.blocks]
        for run in timed[1:]:
            speedup = speedup_interval(timed[0].blocks, run.blocks, run.rounds)
            yield Pair(name=run.name, over=timed[0].name, batch=batch, speedup=speedup)


def _find_condition_doubts(bench: Bench, batch: int, blocks: int) -> list[str]:
    """Judge the state of the machine in each block. An older vitdeploy kept only the doubts."""
    if bench.provenance is None:
        return []
    states = bench.conditions.get(batch, ())
    if len(states) != blocks:
        raise MeasureError(
            f"the state of the machine is known for {len(states)} of {blocks} blocks", fix="Run vitdeploy bench again."
        )
    return conditions.find_doubts(states)


def _check_statistics(task: tasks.Task, outcomes: Outcomes) -> None:
    """Check that statistics are finite where they must be."""
    for side in (outcomes.reference, outcomes.deployed):
        for name, values in side.items():
            if name not in task.ranking_only and not np.isfinite(values).all():
                raise MeasureError(f"{name} is not finite", fix="Run vitdeploy eval again.")
