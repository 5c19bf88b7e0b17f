"""Intervals of latencies and of their ratios.

Samples are taken in blocks, and blocks in rounds; each round opens the models anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vitdeploy.evidence import Interval
from vitdeploy.measure.statistics import Array, block_log_ratios, ratio_interval

MIN_VALUES = 6
"""The sign test of fewer values gives no 95 % interval of their median."""

_TAIL = 0.025
_PERCENTILE_DRAWS = 1000
_CHUNK = 4_000_000  # draws x samples held at once: 32 MB


def speedup_interval(
    reference: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    rounds: Sequence[int] = (),
    *,
    seed: int = 0,
) -> Interval:
    """Return how many times as fast `other` is, with its 95 % interval.

    Within one round: `ratio_interval`, a bootstrap over blocks. Over several rounds: the median of the rounds' medians,
    with the sign test's interval over the rounds. The blocks of one round share what its opening of the models drew
    (where buffers lie, on which core a thread woke), and a bootstrap over blocks cannot see that. Opening a model anew
    changes its ratio to itself by 0.5 to 1 %, and once in forty openings by 20 %, far more than the spread of blocks.
    (Kalibera & Jones 2013, "Rigorous Benchmarking in Reasonable Time"; Mytkowicz et al. 2009, "Producing Wrong Data
    Without Doing Anything Obviously Wrong!".)

    Args:
        reference: samples of the reference, block by block.
        other: samples of the other side, taken in the same blocks.
        rounds: number of blocks of each round, in order; fewer than two: all blocks are of one round.
        seed: of the bootstrap.

    Raises:
        ValueError: the rounds do not add up to the blocks.
    """
    if len(rounds) < 2:
        return ratio_interval(reference, other, seed=seed)
    logs = block_log_ratios(reference, other)
    if sum(rounds) != len(logs):
        raise ValueError(f"there are {len(logs)} blocks, but the rounds have {sum(rounds)}")
    center, low, high = median_interval([float(np.median(part)) for part in np.split(logs, np.cumsum(rounds)[:-1])])
    return Interval(ratio=math.exp(center), ci95=(math.exp(low), math.exp(high)))


def sign_rank(count: int) -> int:
    """Return the rank r of the median's 95 % interval, from the r-th smallest to the r-th largest value.

    The inverted sign test, valid for any distribution: r is the largest with P(Binomial(count, 1/2) < r) <= 2.5 %
    (Hollander, Wolfe & Chicken 2014, section 3.6). The confidence is lower for fewer than 6 values. The interval
    ignores one outlier on either side from 9 values on, and two from 12 on.
    """
    from scipy.stats import binom

    return max(int(binom.ppf(_TAIL, count, 0.5)), 1)


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of independent values, and the ends of the sign test's 95 % interval around it.

    With fewer than `MIN_VALUES` values the ends are the smallest and the largest, with a lower confidence.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    rank = sign_rank(len(ordered))
    return float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[-rank])


def half_width(interval: Interval) -> float:
    """Return half the interval's width, as a fraction of the ratio."""
    low, high = interval.ci95
    return math.log(high / low) / 2


def join_rounds(blocks: Sequence[Sequence[float]], rounds: Sequence[int]) -> Sequence[Sequence[float]]:
    """Join the blocks of each round; with fewer than two rounds, keep the blocks."""
    if len(rounds) < 2:
        return blocks
    ends = np.cumsum(rounds)
    return [[s for block in blocks[end - count : end] for s in block] for end, count in zip(ends, rounds, strict=True)]


def percentile_intervals(
    blocks: Sequence[Sequence[float]], percents: Sequence[int], *, seed: int = 0
) -> list[tuple[float, float]]:
    """Return 95 % bootstrap intervals of nearest-rank percentiles; whole blocks are resampled.

    Samples of one block resemble each other, so resampling single ones would give intervals that are too narrow
    (cluster bootstrap: Davison & Hinkley 1997, section 3.8). No interval reaches beyond the largest sample.

    Args:
        blocks: samples by block.
        percents: the percentiles, 1 to 100.
        seed: of the resampling.
    """
    values = np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks])
    block_of = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    order = np.argsort(values, kind="stable")
    values, block_of = values[order], block_of[order]
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), size=_PERCENTILE_DRAWS)
    chunks = _draw_percentiles(values, block_of, counts, percents)
    draws = [np.concatenate(parts) for parts in zip(*chunks, strict=True)]
    return [(float(low), float(high)) for low, high in (np.percentile(d, [2.5, 97.5], method="nearest") for d in draws)]


def _draw_percentiles(values: Array, block_of: Array, counts: Array, percents: Sequence[int]) -> list[list[Array]]:
    """Return the percentiles of all draws, by chunk of draws and percentile.

    Args:
        values: all samples, ascending.
        block_of: the index of each sample's block.
        counts: how often each block was drawn; shape (draws, blocks).
        percents: the percentiles.
    """
    chunk = max(1, _CHUNK // len(values))
    parts = []
    for start in range(0, len(counts), chunk):
        below = np.cumsum(counts[start : start + chunk][:, block_of], axis=1)
        ranks = [-(-below[:, -1] * percent // 100) for percent in percents]
        parts.append([values[(below >= rank[:, None]).argmax(axis=1)] for rank in ranks])
    return parts
