"""Paired differences of metrics that are no share of right answers, by resampling.

A metric is a function of how often each sample counts, so a draw is a vector of weights. This works for a metric of the
whole data set (mIoU, mAP) as well as for a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from vitdeploy.measure.statistics import Z_ONE_SIDED, Z_TWO_SIDED, Array

DRAWS = 2000  # the Monte Carlo error of a 2.5 % quantile is then 0.35 % of probability
SWAPS = 999  # the smallest p-value is then 0.001
FEW = 10
"""If fewer samples differ between the sides, they do not show how large a difference can be."""

_ROUNDING = 1e-12  # of the metric: summing thousands of float64 terms in another order changes less

Metrics = Callable[[Array], Mapping[str, float]]
"""Compute metric -> value from how often each sample counts, shape (n,); NaN if a metric is not defined."""


@dataclass(frozen=True)
class Drop:
    """The drop of a metric in its unit, with its 95 % interval and one-sided 95 % bounds."""

    reference: float
    deployed: float
    drop: float
    ci95: tuple[float, float]
    lower95: float
    upper95: float
    variance: float
    """n times the squared standard error of the drop: the variance of the difference that one sample makes."""
    counted: int
    """The number of samples that the metric counts."""
    differing: int
    """The number of samples whose statistics differ between the sides."""
    span: float
    """The most that one sample can lose."""

    def least_reach(self, z: float) -> float:
        """Return how far a bound at the normal quantile `z` reaches at least; 0 if enough samples differ.

        That is the bound of a proportion with no discordant sample, z² / (n + z²) (Tango 1998), times the most that one
        sample can lose.
        """
        return self.span * z * z / (self.counted + z * z) if self.differing < FEW else 0.0


def paired_drops(
    reference: Metrics,
    deployed: Metrics,
    n: int,
    *,
    signs: Mapping[str, float],
    spans: Mapping[str, float],
    differing: Mapping[str, int],
    counted: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, Drop]:
    """Return the drop of each metric, with its paired bootstrap interval.

    Both sides are computed on the same draws of samples. The interval is the expanded percentile interval (Hesterberg
    2015, The American Statistician 69, 371-386): its levels are those of Student's t, widened by sqrt(n / (n - 1)),
    because the percentile interval of few samples is too narrow. If a metric differs for fewer than `FEW` samples, its
    interval reaches at least as far as `Drop.least_reach` says.

    Args:
        reference: metrics of the reference.
        deployed: metrics of the deployed model on the same samples.
        n: number of samples.
        signs: metric -> 1 if higher is better, -1 if lower is.
        spans: metric -> the most that one sample can lose.
        differing: metric -> number of samples whose statistics differ between the sides.
        counted: metric -> number of samples that can change it; None: all.
        seed: of the draws; the same samples and seed give the same interval.

    Raises:
        ValueError: there are no samples.
    """
    if n < 1:
        raise ValueError("no samples to draw from")
    once = np.ones(n)
    first, second = reference(once), deployed(once)
    draws = _draw_drops(reference, deployed, n, signs, seed)
    drops = {}
    for name, sign in signs.items():
        drop = sign * (first[name] - second[name])
        values = draws[name][~np.isnan(draws[name])]
        low, lower, upper, high = _expanded_quantiles(values, n, drop)
        variance = n * float(values.var()) if len(values) else 0.0
        exact = Drop(
            first[name], second[name], drop, (low, high), lower, upper, variance,
            n if counted is None else counted[name], differing[name], spans[name],
        )  # fmt: skip
        drops[name] = _widen(exact)
    return drops


def _widen(exact: Drop) -> Drop:
    """Return a drop whose interval and bounds reach as far as they must, if few samples differ."""
    if exact.differing >= FEW:
        return exact
    one_sided, two_sided = (exact.least_reach(z) for z in (Z_ONE_SIDED, Z_TWO_SIDED))
    drop, (low, high) = exact.drop, exact.ci95
    return replace(
        exact,
        ci95=(min(low, drop - two_sided), max(high, drop + two_sided)),
        lower95=min(exact.lower95, drop - one_sided),
        upper95=max(exact.upper95, drop + one_sided),
    )


def swap_p_value(both: Metrics, name: str, n: int, *, seed: int = 0) -> float:
    """Return the p-value of the difference of metric `name`, by random swaps.

    If both models are equally good, it does not matter which model gave which answer to a sample. So the sides are
    swapped at random, sample by sample (approximate randomization, Noreen 1989).

    Args:
        both: metrics of the statistics of both sides, concatenated: first the n samples of the reference.
        name: the metric.
        n: number of samples of one side.
        seed: of the swaps.
    """
    generator = np.random.default_rng(seed)

    def difference(swapped: Array) -> float:
        one, other = np.concatenate([1 - swapped, swapped]), np.concatenate([swapped, 1 - swapped])
        return abs(both(one)[name] - both(other)[name])

    # A sum in another order differs by rounding, which must not decide the comparison.
    rounding = _ROUNDING * abs(both(np.ones(2 * n))[name])
    observed = difference(np.zeros(n))
    if observed <= rounding:
        return 1.0
    swapped = (difference(generator.integers(0, 2, n).astype(np.float64)) for _ in range(SWAPS))
    as_large = sum(value >= observed - rounding for value in swapped)
    return (as_large + 1) / (SWAPS + 1)


def _draw_drops(
    reference: Metrics, deployed: Metrics, n: int, signs: Mapping[str, float], seed: int
) -> dict[str, Array]:
    draws = {name: np.empty(DRAWS) for name in signs}
    for i, weights in enumerate(_draw_weights(n, seed)):
        first, second = reference(weights), deployed(weights)
        for name, sign in signs.items():
            draws[name][i] = sign * (first[name] - second[name])
    return draws


def _draw_weights(n: int, seed: int) -> Iterator[Array]:
    generator = np.random.default_rng(seed)
    for _ in range(DRAWS):
        yield np.bincount(generator.integers(0, n, n), minlength=n).astype(np.float64)


def _expanded_quantiles(values: Array, n: int, drop: float) -> tuple[float, float, float, float]:
    """Return the 2.5, 5, 95 and 97.5 % quantiles at expanded levels; `drop` if there are no values."""
    if n < 2 or not len(values):
        return drop, drop, drop, drop
    from scipy.stats import norm, t

    levels = [float(norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(p, n - 1))) for p in (0.025, 0.05, 0.95, 0.975)]
    low, lower, upper, high = (float(v) for v in np.quantile(values, levels))
    return low, lower, upper, high
