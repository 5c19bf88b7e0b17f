"""Signal-to-quantization-noise ratio of tensors, summed up over batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vitdeploy.session import Array

MOST_DB = 200.0
"""The limit for tensors that are equal, or that have nothing in common: a ratio must be a number that JSON can hold.
Float32 itself resolves 150 dB."""


def decibels(signal: float, noise: float) -> float:
    """Return 10 · log10(signal / noise) of two energies, within ± `MOST_DB`. 10 dB less is ten times the noise.

    Energies that are not finite give -`MOST_DB`. No noise gives `MOST_DB`, even without a signal.
    """
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return -MOST_DB
    if noise <= 0:
        return MOST_DB
    if signal <= 0:
        return -MOST_DB
    return min(MOST_DB, max(-MOST_DB, 10 * math.log10(signal / noise)))


@dataclass
class Noise:
    """Sums over all batches of a reference tensor and another that should equal it. Energies are sums of squares.

    Attributes:
        signal: energy of the reference.
        other: energy of the other tensor.
        product: sum of the products of both, number by number.
        noise: energy of the difference.
        max_abs: the largest difference.
        reference_max: the largest magnitude of the reference.
        nonfinite: how many numbers of the other tensor are NaN or infinite where the reference is finite.
    """

    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    reference_max: float = 0.0
    nonfinite: int = 0

    def add(self, reference: Array, other: Array) -> None:
        """Add one batch. Both tensors have the same shape, and any float type. Sums are in float64."""
        a, b = (x.astype(np.float64).ravel() for x in (reference, other))
        is_nonfinite = ~np.isfinite(b)
        if is_nonfinite.any():
            self.nonfinite += int((is_nonfinite & np.isfinite(a)).sum())
            self.noise = self.max_abs = math.inf
            return
        difference = a - b
        self.signal += float(a @ a)
        self.other += float(b @ b)
        self.product += float(a @ b)
        self.noise += float(difference @ difference)
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0.0)))
        self.reference_max = max(self.reference_max, float(np.abs(a).max(initial=0.0)))

    @property
    def sqnr_db(self) -> float:
        """The signal-to-noise ratio, see `decibels`."""
        return decibels(self.signal, self.noise)

    @property
    def cosine(self) -> float:
        """The cosine of the angle between both as vectors; 0 if one of them is 0 or not finite."""
        norm = math.sqrt(self.signal * self.other)
        return self.product / norm if norm and math.isfinite(self.noise) else 0.0


def mean_sqnr_db(noises: Iterable[Noise]) -> float:
    """Return the ratio of several tensors with equal weights: that of the mean of noise / signal."""
    return max(-MOST_DB, -10 * float(np.log10(np.mean([10 ** (-noise.sqnr_db / 10) for noise in noises]))))
