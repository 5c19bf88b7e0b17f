import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Interval
from vitdeploy.measure import statistics
from vitdeploy.measure.statistics import (
    PairedDrop,
    block_log_ratios,
    paired_drop,
    percentile,
    quotient_interval,
    ratio_interval,
    required_samples,
)


def drop_of(n: int, lost: int, gained: int) -> PairedDrop:
    both = (n - lost - gained) // 2
    return PairedDrop(n, lost, gained, (both + lost) / n, (both + gained) / n)


def test_percentile_is_one_of_the_samples() -> None:
    samples = [float(x) for x in range(1, 101)]
    assert [percentile(samples[::-1], p) for p in range(1, 101)] == samples
    assert percentile([3.0, 1.0], 50) == 1.0
    assert percentile([1.0, 2.0, 9.0], 99) == 9.0


@pytest.mark.parametrize(("samples", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentile_refuses(samples: list[float], percent: int) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(samples, percent)


def blocks(rng: np.random.Generator, count: int, ratio: float) -> tuple[list[list[float]], list[list[float]]]:
    """Both sides share the speed of the machine in a block (up to twice as slow); one block in ten is disturbed."""
    machine = rng.uniform(1, 2, size=(count, 1))
    a = 10 * ratio * machine * rng.lognormal(0, 0.05, (count, 4))
    b = 10 * machine * rng.lognormal(0, 0.05, (count, 4))
    a *= np.where(rng.random((count, 1)) < 0.05, 1.5, 1)
    b *= np.where(rng.random((count, 1)) < 0.05, 1.5, 1)
    return a.tolist(), b.tolist()


@pytest.mark.parametrize("count", [10, 30])
@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_ratio_interval_covers(count: int, ratio: float) -> None:
    rng = np.random.default_rng(0)
    intervals = [ratio_interval(*blocks(rng, count, ratio)).ci95 for _ in range(600)]
    covered = np.mean([low <= ratio <= high for low, high in intervals])
    assert 0.925 <= covered <= 0.99  # 95 %, three standard errors of 600 draws, and the conservatism of a median
    assert np.median([high / low for low, high in intervals]) < 1.15


def test_ratio_interval_is_seeded_and_needs_pairs_of_blocks() -> None:
    a, b = blocks(np.random.default_rng(1), 20, 1.2)
    assert ratio_interval(a, b, seed=3) == ratio_interval(a, b, seed=3)
    with pytest.raises(ValueError, match="blocks are not pairs"):
        ratio_interval(a, b[1:])
    with pytest.raises(ValueError, match="blocks are not pairs"):
        ratio_interval([], [])


def test_one_slow_run_of_a_block_does_not_move_its_ratio() -> None:
    disturbed = [[10.0, 10.0, 90.0]] * 10
    assert ratio_interval(disturbed, [[5.0] * 3] * 10).ratio == pytest.approx(2)
    assert ratio_interval([[5.0] * 3] * 10, disturbed).ratio == pytest.approx(0.5)


def test_quotient_interval() -> None:
    exact, wide = Interval(ratio=1.0, ci95=(1.0, 1.0)), Interval(ratio=2.0, ci95=(1.8, 2.5))
    assert quotient_interval(wide, exact) == wide
    found = quotient_interval(exact, wide)
    assert (found.ratio, *found.ci95) == (pytest.approx(0.5), pytest.approx(1 / 2.5), pytest.approx(1 / 1.8))
    same = quotient_interval(wide, wide)
    assert same.ratio == pytest.approx(1)
    assert same.ci95[1] == pytest.approx(math.exp(math.hypot(math.log(1.25), math.log(1 / 0.9))))


def test_robust_spread() -> None:
    values = np.random.default_rng(0).normal(3, 2, 10_000)
    values[:100] = 1e6
    assert statistics.robust_spread(values) == pytest.approx(2, rel=0.05)


def test_paired_drop_counts() -> None:
    reference = np.array([1, 1, 1, 0, 0, 1])
    deployed = np.array([1, 0, 0, 1, 0, 1])
    found = paired_drop(reference, deployed)
    assert (found.n, found.lost, found.gained) == (6, 2, 1)
    assert found.drop == pytest.approx(1 / 6)
    assert found.reference - found.deployed == pytest.approx(found.drop)
    assert found.discordance == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("reference", "deployed", "match"),
    [
        (np.array([]), np.array([]), "pairs"),
        (np.array([1, 0]), np.array([1]), "pairs"),
        (np.array([0.5]), np.array([1.0]), "0 or 1"),
        (np.array([np.nan]), np.array([1.0]), "0 or 1"),
    ],
)
def test_paired_drop_refuses(reference: np.ndarray, deployed: np.ndarray, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        paired_drop(reference, deployed)


def test_mcnemar_equals_the_binomial_by_hand() -> None:
    # b = 8, c = 2: 2 * (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 2 * 56 / 1024
    assert drop_of(100, 8, 2).p_value == pytest.approx(112 / 1024)
    assert drop_of(100, 2, 8).p_value == pytest.approx(112 / 1024)
    assert drop_of(100, 0, 0).p_value == 1.0
    assert drop_of(100, 5, 5).p_value == 1.0


@pytest.mark.parametrize(("n", "lost", "gained"), [(44, 1, 0), (100, 8, 2), (1000, 3, 9)])
def test_bound_is_where_the_score_of_the_constrained_likelihood_is_z(n: int, lost: int, gained: int) -> None:
    for bound in drop_of(n, lost, gained).ci95:

        def unlikely(p: float, delta: float = bound) -> float:  # p: the probability of `gained`
            return -(
                lost * math.log(p + delta) + gained * math.log(p) + (n - lost - gained) * math.log(1 - 2 * p - delta)
            )

        least = max(0.0, -bound) + 1e-12
        p = minimize_scalar(unlikely, bounds=(least, (1 - bound) / 2 - 1e-12), options={"xatol": 1e-12}).x
        z = (lost - gained - n * bound) / math.sqrt(n * (2 * p + bound - bound**2))
        assert abs(z) == pytest.approx(statistics.Z_TWO_SIDED, abs=1e-3)


def test_no_discordance_still_has_width() -> None:
    found, z = drop_of(50, 0, 0), statistics.Z_ONE_SIDED
    assert found.ci95[0] < 0 < found.ci95[1]
    assert found.upper95 == pytest.approx(z * z / (50 + z * z))


@pytest.mark.parametrize(
    ("n", "lost", "gained"), [(1, 0, 0), (1, 1, 0), (40, 40, 0), (40, 0, 40), (9, 5, 4), (1000, 30, 3)]
)
def test_bounds_are_ordered_and_mirror(n: int, lost: int, gained: int) -> None:
    found, mirror = drop_of(n, lost, gained), drop_of(n, gained, lost)
    low, high = found.ci95
    assert -1 <= low <= found.lower95 <= found.drop <= found.upper95 <= high <= 1
    assert mirror.ci95 == (pytest.approx(-high), pytest.approx(-low))


@pytest.mark.parametrize(
    ("n", "p_lost", "p_gained"), [(200, 0.03, 0.02), (1000, 0.015, 0.005), (1000, 0.01, 0.01), (5000, 0.012, 0.008)]
)
def test_bounds_cover(n: int, p_lost: float, p_gained: float) -> None:
    rng = np.random.default_rng(0)
    truth = p_lost - p_gained
    draws = rng.multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], size=2000)
    found = [drop_of(n, int(b), int(c)) for b, c, _ in draws]
    assert 0.93 <= np.mean([f.upper95 >= truth for f in found]) <= 0.97
    assert 0.93 <= np.mean([f.lower95 <= truth for f in found]) <= 0.97
    assert 0.93 <= np.mean([f.ci95[0] <= truth <= f.ci95[1] for f in found]) <= 0.97


def test_required_samples() -> None:
    assert required_samples(0.005, 0.001, 0.02) == pytest.approx(10_700, rel=0.01)
    assert required_samples(0.01, 0.003, 0.02) == pytest.approx(3_500, rel=0.01)
    assert required_samples(0.5, 0.3, 0.32) == 50  # (1.645 + 1.282)² · (0.32 - 0.3²) / (0.5 - 0.3)²
    assert required_samples(0.005, 0.005, 0.02) is None
    assert required_samples(0.01, 0.0, 0.0) == math.ceil(statistics.Z_ONE_SIDED**2 * 99)


def test_required_samples_give_the_promised_power() -> None:
    margin, lost, gained = 0.01, 0.0115, 0.0085
    n = required_samples(margin, lost - gained, lost + gained)
    assert n is not None
    draws = np.random.default_rng(0).multinomial(n, [lost, gained, 1 - lost - gained], size=1000)
    passed = np.mean([drop_of(n, int(b), int(c)).upper95 <= margin for b, c, _ in draws])
    assert 0.87 <= passed <= 0.93


@pytest.mark.parametrize("times", [(0.0, 0.0), (math.nan, 1.0), (math.inf, math.inf)])
def test_a_median_that_is_no_time_has_no_ratio(times: tuple[float, ...]) -> None:
    with pytest.raises(MeasureError, match="no time above 0"):
        block_log_ratios([(1.0, 2.0), times], [(1.0, 2.0), (1.0, 1.0)])
