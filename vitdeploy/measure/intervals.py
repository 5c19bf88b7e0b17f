"""Intervals of latencies and of their ratios, where samples come in blocks and blocks in openings of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vitdeploy.evidence import Interval
from vitdeploy.measure.statistics import Array, block_log_ratios, ratio_interval

_ONE_SIDE = 0.025
_PERCENTILE_DRAWS = 1000
_CHUNK = 4_000_000  # draws x samples held at once: 32 MB


def speedup_interval(
    reference: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    rounds: Sequence[int] = (),
    *,
    seed: int = 0,
) -> Interval:
    """How many times as fast `other` is, with its 95 % interval.

    Within one opening of the two models: `ratio_interval`, a bootstrap over blocks. Over several openings: the median
    of their medians, with the sign test's interval over the openings, because the blocks of one opening share what
    that opening drew (where buffers lie, which core a thread woke on), and a bootstrap over blocks would not see it.
    Opening a model anew moves its ratio to itself by 0.5 to 1 %, and once in forty openings by 20 %, far more than
    blocks say. (Kalibera & Jones 2013, "Rigorous Benchmarking in Reasonable Time"; Mytkowicz et al. 2009, "Producing
    Wrong Data Without Doing Anything Obviously Wrong!".)

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
    medians = np.sort([np.median(part) for part in np.split(logs, np.cumsum(rounds)[:-1])])
    rank = sign_rank(len(medians))
    low, center, high = float(medians[rank - 1]), float(np.median(medians)), float(medians[-rank])
    return Interval(ratio=math.exp(center), ci95=(math.exp(low), math.exp(high)))


def sign_rank(count: int) -> int:
    """r, so that the r-th smallest and r-th largest of `count` values hold their median with 95 % confidence at least.

    The sign test turned around: P(Binomial(count, 1/2) < r) <= 2.5 %, whatever the distribution (Hollander, Wolfe &
    Chicken 2014, section 3.6). From 6 values on; one outlier does no harm from 9 on, two from 12 on.
    """
    below, rank = 0.0, 0
    while (below := below + math.comb(count, rank) / 2**count) <= _ONE_SIDE:
        rank += 1
    return max(rank, 1)


def half_width(interval: Interval) -> float:
    """Half the interval's width as a fraction of the ratio."""
    low, high = interval.ci95
    return math.log(high / low) / 2


def of_openings(blocks: Sequence[Sequence[float]], rounds: Sequence[int]) -> Sequence[Sequence[float]]:
    """The samples of each opening as one block: its blocks share what it drew. One opening stays in its blocks."""
    if len(rounds) < 2:
        return blocks
    ends = np.cumsum(rounds)
    return [[s for block in blocks[end - count : end] for s in block] for end, count in zip(ends, rounds, strict=True)]


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
