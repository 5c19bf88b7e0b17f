"""How far one tensor is from another, summed up over batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vitdeploy.session import Array

MOST_DB = 200.0
"""Where nothing differs, or nothing is right: float32 itself resolves 150 dB. A ratio stays a number that JSON has."""


def decibels(signal: float, noise: float) -> float:
    """10 · log10(signal / noise), both energies, within ± `MOST_DB`: 10 dB less is ten times the noise.

    Energies that are not finite give -`MOST_DB`; no noise gives `MOST_DB`, and so does no signal without noise.
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
    """What was seen so far of a tensor and of what should be the same. Energies are sums of squares, in float64.

    Attributes:
        signal: energy of the reference.
        other: energy of what is compared with it.
        product: sum of both, multiplied.
        noise: energy of the difference.
        max_abs: the largest difference.
        reference_max: the largest magnitude of the reference.
        nonfinite: how many numbers of the compared tensor are NaN or infinite where the reference's are not.
    """

    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    reference_max: float = 0.0
    nonfinite: int = 0

    def see(self, reference: Array, other: Array) -> None:
        """Add one batch; both of one shape, of any float type."""
        a, b = (x.astype(np.float64).ravel() for x in (reference, other))
        bad = ~np.isfinite(b)
        if bad.any():
            self.nonfinite += int((bad & np.isfinite(a)).sum())
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
        """Signal to noise ratio, see `decibels`."""
        return decibels(self.signal, self.noise)

    @property
    def cosine(self) -> float:
        """Of the angle between both, as two long vectors; 0 when one of them is 0 or not finite."""
        norm = math.sqrt(self.signal * self.other)
        return self.product / norm if norm and math.isfinite(self.noise) else 0.0


def mean_sqnr_db(noises: Iterable[Noise]) -> float:
    """Of several tensors, each weighing the same: of the mean of noise / signal."""
    return max(-MOST_DB, -10 * float(np.log10(np.mean([10 ** (-noise.sqnr_db / 10) for noise in noises]))))
