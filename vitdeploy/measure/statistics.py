"""Statistics of latencies and accuracies: percentiles, the interval of a ratio, paired differences. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Interval

Array = npt.NDArray[Any]

# Standard normal quantiles: one-sided 95 %, two-sided 95 %, power 0.9.
Z_ONE_SIDED, Z_TWO_SIDED, Z_POWER_90 = (NormalDist().inv_cdf(p) for p in (0.95, 0.975, 0.9))

RESAMPLES = 4000  # the Monte Carlo error of a 2.5 % quantile is then 0.25 % of probability


def percentile(samples: Sequence[float], percent: int) -> float:
    """Return the smallest sample that at least `percent` % of the samples do not exceed (nearest rank).

    Nearest rank instead of interpolation: the result is a latency that was measured, and with too few samples in the
    tail it is the maximum, never something lower. p99 of fewer than 100 samples is their maximum.

    Raises:
        ValueError: there are no samples, or the percentage is not in 1 … 100.
    """
    if not samples or not 1 <= percent <= 100:
        raise ValueError(f"{len(samples)} samples have no percentile {percent}")
    # In integers: np.percentile(method="inverted_cdf") takes percent / 100 in floating point, and gives the 8th of 100
    # samples as their 7th percentile.
    rank = -(-percent * len(samples) // 100)
    return sorted(samples)[rank - 1]


def block_log_ratios(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Array:
    """Return log(median of the reference / median of the other) of each block; shape (blocks,).

    Raises:
        ValueError: the two sides have different numbers of blocks, or none.
        MeasureError: the median of a block is no time above 0.
    """
    if len(reference) != len(other) or not reference:
        raise ValueError(f"blocks are not pairs: {len(reference)} of the reference, {len(other)} of the other side")
    medians = np.array([[np.median(block) for block in side] for side in (reference, other)])
    if not (np.isfinite(medians) & (medians > 0)).all():
        raise MeasureError("a block of the timings has a median that is no time above 0", fix="Time larger batches.")
    return np.array(np.log(medians[0] / medians[1]))


def ratio_interval(
    reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]], *, seed: int = 0
) -> Interval:
    """Return how many times as fast `other` is, with its 95 % bootstrap interval over blocks.

    The estimate is the median over the blocks of their ratios of medians, so a disturbed block changes it little.
    Blocks are resampled as pairs (percentile bootstrap, Efron & Tibshirani 1993, ch. 13). The interval of this median
    keeps its coverage from 10 blocks on; that of a mean does not.

    Args:
        reference: samples of the reference, block by block.
        other: samples of the other side, taken in the same blocks.
        seed: of the resampling; the same samples and seed give the same interval.
    """
    logs = block_log_ratios(reference, other)
    draws = np.random.default_rng(seed).integers(0, len(logs), size=(RESAMPLES, len(logs)))
    low, high = np.percentile(np.median(logs[draws], axis=1), [2.5, 97.5])
    return Interval(ratio=math.exp(float(np.median(logs))), ci95=(math.exp(float(low)), math.exp(float(high))))


def quotient_interval(numerator: Interval, denominator: Interval) -> Interval:
    """Return the quotient of two independent ratios, with its 95 % interval.

    On the log scale the squares of the distances to the ends are added (MOVER: Zou & Donner 2008, Statistics in
    Medicine 27, 1693-1702). This keeps the asymmetry of the intervals.
    """
    a, (a_low, a_high) = math.log(numerator.ratio), map(math.log, numerator.ci95)
    b, (b_low, b_high) = math.log(denominator.ratio), map(math.log, denominator.ci95)
    low = a - b - math.hypot(a - a_low, b_high - b)
    high = a - b + math.hypot(a_high - a, b - b_low)
    return Interval(ratio=math.exp(a - b), ci95=(math.exp(low), math.exp(high)))


def robust_spread(values: Array) -> float:
    """Return 1.4826 * MAD (median absolute deviation), a standard deviation that ignores outliers."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


@dataclass(frozen=True)
class PairedDrop:
    """0/1 outcomes of two models on the same samples, as fractions (not percent).

    `lost` counts the samples that only the reference got right, `gained` those that only the deployed model got right.
    """

    n: int
    lost: int
    gained: int
    reference: float
    deployed: float

    @property
    def drop(self) -> float:
        """Reference - deployed."""
        return (self.lost - self.gained) / self.n

    @property
    def discordance(self) -> float:
        """The fraction of samples with different outcomes."""
        return (self.lost + self.gained) / self.n

    @property
    def ci95(self) -> tuple[float, float]:
        """The two-sided 95 % interval of the drop."""
        return self.bound(-Z_TWO_SIDED), self.bound(Z_TWO_SIDED)

    @property
    def lower95(self) -> float:
        """The one-sided 95 % lower bound of the drop."""
        return self.bound(-Z_ONE_SIDED)

    @property
    def upper95(self) -> float:
        """The one-sided 95 % upper bound of the drop."""
        return self.bound(Z_ONE_SIDED)

    @property
    def p_value(self) -> float:
        """Exact McNemar test: two-sided binomial test of `lost` among the discordant samples; 1 if there are none."""
        if not self.lost + self.gained:
            return 1.0
        from scipy.stats import binomtest

        return float(binomtest(self.lost, self.lost + self.gained, 0.5).pvalue)

    def bound(self, z: float) -> float:
        """Return the drop at which Tango's score statistic is -z.

        It is above the estimate for z > 0, and below it for z < 0 (Tango 1998, Statistics in Medicine 17, 891-908).
        Without any discordant sample it is z² / (n + z²), so the interval never shrinks to a point.
        """
        if z < 0:
            return -PairedDrop(self.n, self.gained, self.lost, self.deployed, self.reference).bound(-z)
        if self.lost == self.n:
            return 1.0
        from scipy.optimize import brentq

        return float(brentq(lambda delta: self._score(delta) + z, self.drop, 1.0))

    def _score(self, delta: float) -> float:
        """Return (lost - gained - n delta) / its standard error, for a true drop of delta.

        P(gained) is its most likely value, given P(lost) - P(gained) = delta.
        """
        n, b, c = self.n, self.lost, self.gained
        linear = (2 * n - b + c) * delta - b - c
        root = math.sqrt(max(linear * linear + 8 * n * c * delta * (1 - delta), 0.0))
        gained = (root - linear) / (4 * n)
        variance = n * (2 * gained + delta * (1 - delta))
        distance = b - c - n * delta
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)


def paired_drop(reference: Array, deployed: Array) -> PairedDrop:
    """Count the outcomes of two models on the same samples.

    Args:
        reference: 0/1 per sample, shape (n,).
        deployed: 0/1 per sample, shape (n,), in the same order.

    Raises:
        ValueError: there are no samples, the shapes differ, or there are values besides 0 and 1.
    """
    if reference.shape != deployed.shape or reference.ndim != 1 or not reference.size:
        raise ValueError(f"shapes {reference.shape} and {deployed.shape} are not those of pairs of samples")
    if not (np.isin(reference, (0, 1)).all() and np.isin(deployed, (0, 1)).all()):
        raise ValueError("outcomes must be 0 or 1")
    ref, dep = reference.astype(bool), deployed.astype(bool)
    return PairedDrop(
        n=ref.size,
        lost=int((ref & ~dep).sum()),
        gained=int((~ref & dep).sum()),
        reference=float(ref.mean()),
        deployed=float(dep.mean()),
    )


def required_samples(margin: float, drop: float, discordance: float) -> int | None:
    """Return the number of samples that decides on which side of `margin` the drop is.

    For a one-sided 95 % test of power 0.9, n = (z_0.95 + z_0.9)² (discordance - drop²) / (margin - drop)², the normal
    approximation for paired proportions (Lachenbruch & Lynch 1998, Statistics in Medicine 17, 2207-2217). It is at
    least z² (1 - margin) / margin, the number for a test without any discordant sample.

    Args:
        margin: the largest drop that is allowed, as a fraction.
        drop: the expected drop, as a fraction.
        discordance: the fraction of samples with different outcomes.

    Returns:
        The number of samples; None if the drop equals the margin, which no number of samples can decide.
    """
    if math.isclose(margin, drop, abs_tol=1e-12):
        return None
    least = Z_ONE_SIDED**2 * (1 - margin) / margin
    variance = max(discordance - drop * drop, 0.0)
    return math.ceil(max(least, (Z_ONE_SIDED + Z_POWER_90) ** 2 * variance / (margin - drop) ** 2))
