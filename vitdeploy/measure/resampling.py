"""Paired differences of any metric, by drawing samples again: metrics that are no share of right answers.

A metric here is a function of how often each sample counts, so a draw is a vector of weights, and metrics of a whole
corpus (mIoU, mAP) are drawn as soundly as means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vitdeploy.measure.statistics import Z_ONE_SIDED, Z_TWO_SIDED, Array

DRAWS = 2000  # the Monte Carlo error of a 2.5 % quantile is then 0.35 % of probability
SWAPS = 999  # the least p-value is then 0.001
FEW = 10
"""When fewer samples than this differ between the sides, how large differences can be has not been seen."""

_ROUNDING = 1e-12  # of the metric: thousands of float64 terms in another order stay below

Metrics = Callable[[Array], Mapping[str, float]]
"""From how often each sample counts, shape (n,), to metric -> value; NaN where it is not defined."""


@dataclass(frozen=True)
class Drop:
    """By how much a metric is worse, in its own unit: with a two-sided 95 % interval and one-sided 95 % bounds."""

    reference: float
    deployed: float
    drop: float
    ci95: tuple[float, float]
    lower95: float
    upper95: float
    variance: float
    """Of the difference that one sample makes: n times the squared standard error of the drop."""


def paired_drops(
    reference: Metrics,
    deployed: Metrics,
    n: int,
    *,
    signs: Mapping[str, float],
    spans: Mapping[str, float],
    differing: Mapping[str, int],
    seed: int = 0,
) -> dict[str, Drop]:
    """The drop of each metric with its bootstrap interval: both sides are computed on the same draws of samples.

    The interval is the expanded percentile interval (Hesterberg 2015, The American Statistician 69, 371-386): the
    levels are those of Student's t, widened by sqrt(n / (n - 1)), because the percentile interval of few samples is too
    narrow. Where a metric differs for fewer than `FEW` samples, its interval reaches at least as far as that of a
    proportion with no discordant sample, z² / (n + z²) (Tango 1998), times what one sample can lose.

    Args:
        reference: metrics of the reference.
        deployed: metrics of the other model on the same samples.
        n: how many samples there are.
        signs: metric -> 1 where higher is better, -1 where lower is.
        spans: metric -> the most that one sample can lose.
        differing: metric -> for how many samples what it is made of differs between the sides.
        seed: of the draws, so that the same samples give the same interval.

    Raises:
        ValueError: no samples.
    """
    if n < 1:
        raise ValueError("no samples to draw from")
    whole = np.ones(n)
    first, second = reference(whole), deployed(whole)
    drawn = _draws(reference, deployed, n, signs, seed)
    found = {}
    for name, sign in signs.items():
        drop = sign * (first[name] - second[name])
        values = drawn[name][~np.isnan(drawn[name])]
        low, lower, upper, high = _quantiles(values, n, drop)
        if differing[name] < FEW:
            wide, wider = (spans[name] * z * z / (n + z * z) for z in (Z_ONE_SIDED, Z_TWO_SIDED))
            low, lower = min(low, drop - wider), min(lower, drop - wide)
            upper, high = max(upper, drop + wide), max(high, drop + wider)
        variance = n * float(values.var()) if len(values) else 0.0
        found[name] = Drop(first[name], second[name], drop, (low, high), lower, upper, variance)
    return found


def swap_p_value(both: Metrics, name: str, n: int, *, seed: int = 0) -> float:
    """How probable a difference of `name` at least as large is between two models that are equally good.

    If they are, it does not matter which of them gave which answer about a sample: the sides are swapped sample by
    sample (approximate randomization, Noreen 1989).

    Args:
        both: metrics of the statistics of both sides in one row, the reference's n samples first.
        name: the metric.
        n: samples of one side.
        seed: of the swaps.
    """
    generator = np.random.default_rng(seed)

    def difference(swapped: Array) -> float:
        one, other = np.concatenate([1 - swapped, swapped]), np.concatenate([swapped, 1 - swapped])
        return abs(both(one)[name] - both(other)[name])

    # What floating point adds in another order is neither a difference nor a smaller one.
    rounding = _ROUNDING * abs(both(np.ones(2 * n))[name])
    observed = difference(np.zeros(n))
    if observed <= rounding:
        return 1.0
    drawn = (difference(generator.integers(0, 2, n).astype(np.float64)) for _ in range(SWAPS))
    beyond = sum(found >= observed - rounding for found in drawn)
    return (beyond + 1) / (SWAPS + 1)


def _draws(reference: Metrics, deployed: Metrics, n: int, signs: Mapping[str, float], seed: int) -> dict[str, Array]:
    found = {name: np.empty(DRAWS) for name in signs}
    for i, weights in enumerate(_weights(n, seed)):
        first, second = reference(weights), deployed(weights)
        for name, sign in signs.items():
            found[name][i] = sign * (first[name] - second[name])
    return found


def _weights(n: int, seed: int) -> Iterator[Array]:
    generator = np.random.default_rng(seed)
    for _ in range(DRAWS):
        yield np.bincount(generator.integers(0, n, n), minlength=n).astype(np.float64)


def _quantiles(values: Array, n: int, drop: float) -> tuple[float, float, float, float]:
    """The 2.5 %, 5 %, 95 % and 97.5 % quantiles, at expanded levels."""
    if n < 2 or not len(values):
        return drop, drop, drop, drop
    from scipy.stats import norm, t

    levels = [float(norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(p, n - 1))) for p in (0.025, 0.05, 0.95, 0.975)]
    low, lower, upper, high = (float(v) for v in np.quantile(values, levels))
    return low, lower, upper, high
