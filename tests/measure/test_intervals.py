"""Intervals of samples that are taken in blocks, and of blocks that are taken in rounds."""

import math

import numpy as np
import pytest

from vitdeploy.evidence import Interval
from vitdeploy.measure.intervals import half_width, join_rounds, percentile_intervals, sign_rank, speedup_interval
from vitdeploy.measure.statistics import percentile, ratio_interval


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (20, 6), (100, 40)])
def test_ranks_are_those_of_the_sign_test(count: int, rank: int) -> None:
    """Hollander, Wolfe & Chicken 2014, table A.1; P(Binomial(100, 1/2) < 40) is 1.8 %, of 41 it is 2.8 %."""
    assert sign_rank(count) == rank


def test_one_round_is_a_bootstrap_over_blocks() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.lognormal(3, 0.05, (30, 5)).tolist() for _ in range(2))
    assert speedup_interval(a, b) == speedup_interval(a, b, [30]) == ratio_interval(a, b)
    with pytest.raises(ValueError, match="there are 30 blocks, but the rounds have 29"):
        speedup_interval(a, b, [20, 9])


@pytest.mark.parametrize("count", [6, 9, 12])
def test_rounds_cover_the_truth_where_blocks_do_not(count: int) -> None:
    """A thousand measurements of a model against itself: openings differ by 1 %, blocks of one by 0.2 %."""
    rng, blocks, draws = np.random.default_rng(1), 4, 1000
    reopened = pooled = 0
    for _ in range(draws):
        offsets = np.repeat(0.01 * rng.standard_normal(count), blocks)
        ratios = np.exp(offsets + 0.002 * rng.standard_normal(count * blocks))
        reference, other = [[1.0]] * len(ratios), [[float(r)] for r in ratios]
        low, high = speedup_interval(reference, other, [blocks] * count).ci95
        reopened += low <= 1 <= high
    for _ in range(200):
        offsets = np.repeat(0.01 * rng.standard_normal(count), blocks)
        ratios = np.exp(offsets + 0.002 * rng.standard_normal(count * blocks))
        low, high = ratio_interval([[1.0]] * len(ratios), [[float(r)] for r in ratios]).ci95
        pooled += low <= 1 <= high
    assert reopened / draws >= 0.95
    assert pooled / 200 < 0.85  # the reason for rounds


def test_half_width_is_relative() -> None:
    assert half_width(Interval(ratio=2.0, ci95=(1.98, 2.02))) == pytest.approx(0.01, rel=1e-3)
    assert half_width(Interval(ratio=1.0, ci95=(1.0, 1.0))) == 0


def test_percentile_intervals_resample_whole_blocks() -> None:
    """Held against a bootstrap written out, with the same draws."""
    rng = np.random.default_rng(2)
    blocks = [(10 + n + rng.random(7)).tolist() for n in range(12)]
    found = percentile_intervals(blocks, (50, 90, 99), seed=5)
    counts = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), size=1000)
    drawn = [[s for block, n in zip(blocks, row, strict=True) for s in block * n] for row in counts]
    for percent, interval in zip((50, 90, 99), found, strict=True):
        values = [percentile(samples, percent) for samples in drawn]
        assert interval == tuple(np.percentile(values, [2.5, 97.5], method="nearest"))
    (one,) = percentile_intervals([[5.0] * 3], (50,))
    assert one == (5.0, 5.0)


def test_percentile_intervals_are_wider_than_those_of_single_samples() -> None:
    rng = np.random.default_rng(3)
    blocks = [[float(level)] * 50 for level in 10 + rng.standard_normal(20)]
    ((low, high),) = percentile_intervals(blocks, (50,))
    assert high - low > 0.3
    assert math.isfinite(low)


def test_the_blocks_of_a_round_are_joined() -> None:
    blocks = [[1.0], [2.0, 3.0], [4.0], [5.0]]
    assert join_rounds(blocks, (2, 2)) == [[1.0, 2.0, 3.0], [4.0, 5.0]]
    assert join_rounds(blocks, (4,)) == join_rounds(blocks, ()) == blocks


def test_percentiles_are_as_uncertain_as_the_rounds_are() -> None:
    rng = np.random.default_rng(0)
    openings = rng.normal(10.0, 0.5, 10)
    blocks = [rng.normal(mean, 0.05, 20).tolist() for mean in openings for _ in range(10)]
    ((low, high),) = percentile_intervals(join_rounds(blocks, (10,) * 10), (50,))
    ((narrow_low, narrow_high),) = percentile_intervals(blocks, (50,))
    assert high - low > 2 * (narrow_high - narrow_low)
