"""Intervals of latencies and of their ratios, where samples come in blocks and blocks in openings of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vitdeploy.evidence import Interval
from vitdeploy.measure.statistics import Array, block_log_ratios, ratio_interval

_PERCENTILE_DRAWS = 1000
_CHUNK = 4_000_000  # draws x samples held at once: 32 MB

# Student's t, 97.5 %, by degrees of freedom from 1 (SciPy would cost the light base half a second to import).
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip


def speedup_interval(
    reference: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    rounds: Sequence[int] = (),
    *,
    seed: int = 0,
) -> Interval:
    """How many times as fast `other` is, with its 95 % interval.

    Within one opening of the two models: `ratio_interval`, a bootstrap over blocks. Over several openings: the mean
    of their medians, with Student's t over the openings, because the blocks of one opening share what that opening
    drew (where buffers lie, which core a thread woke on), and a bootstrap over blocks would not see it. Opening
    DeiT-size models anew moves the ratio of a model to itself by 0.5 to 1 %, far more than blocks say. Kalibera &
    Jones 2013, "Rigorous Benchmarking in Reasonable Time", sections 6 and 7; Mytkowicz et al. 2009, "Producing Wrong
    Data Without Doing Anything Obviously Wrong!".

    Args:
        reference: samples of the reference, block by block.
        other: samples of the other side, taken in the same blocks.
        rounds: how many blocks belong to each opening; none or one: all to one.
        seed: of the bootstrap.
    """
    if len(rounds) < 2:
        return ratio_interval(reference, other, seed=seed)
    logs = block_log_ratios(reference, other)
    if sum(rounds) != len(logs):
        raise ValueError(f"{len(logs)} blocks are not {sum(rounds)}")
    medians = np.array([np.median(part) for part in np.split(logs, np.cumsum(rounds)[:-1])])
    center = float(medians.mean())
    half = student_t(len(medians) - 1) * float(medians.std(ddof=1)) / math.sqrt(len(medians))
    return Interval(ratio=math.exp(center), ci95=(math.exp(center - half), math.exp(center + half)))


def student_t(degrees: int) -> float:
    """The 97.5 % quantile of Student's t; beyond 29 degrees of freedom that of 29, which is on the safe side."""
    return _T[min(degrees, len(_T)) - 1]


def half_width(interval: Interval) -> float:
    """Half the interval's width as a fraction of the ratio."""
    low, high = interval.ci95
    return math.log(high / low) / 2


def percentile_intervals(
    blocks: Sequence[Sequence[float]], percents: Sequence[int], *, seed: int = 0
) -> list[tuple[float, float]]:
    """95 % bootstrap intervals of nearest-rank percentiles, blocks resampled as a whole.

    Samples of one block resemble each other, so that resampling single ones would give intervals that are too narrow
    (cluster bootstrap: Davison & Hinkley 1997, section 3.8). An interval of p99 ends at the largest sample seen.

    Args:
        blocks: samples by block.
        percents: which percentiles, 1 to 100.
        seed: of the resampling.
    """
    values = np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks])
    owner = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), size=_PERCENTILE_DRAWS)
    found = [np.concatenate(parts) for parts in zip(*_drawn(values, owner, counts, percents), strict=True)]
    return [(float(low), float(high)) for low, high in (np.percentile(f, [2.5, 97.5], method="nearest") for f in found)]


def _drawn(values: Array, owner: Array, counts: Array, percents: Sequence[int]) -> list[list[Array]]:
    """The percentiles of each draw, by chunk of draws and percentile."""
    chunk = max(1, _CHUNK // len(values))
    parts = []
    for start in range(0, len(counts), chunk):
        below = np.cumsum(counts[start : start + chunk][:, owner], axis=1)
        ranks = [-(-below[:, -1] * percent // 100) for percent in percents]
        parts.append([values[(below >= rank[:, None]).argmax(axis=1)] for rank in ranks])
    return parts
