"""The range of INT8 weights: on CPUs without VNNI, sums of their products can saturate."""

from __future__ import annotations

from vitdeploy.graph.dialect import Dialect

FULL_RANGE = 127
_HALF_RANGE = 64
"""255 · 64 · 2 = 32,640 fits int16: AVX2 adds pairs of u8 x s8 products there and saturates beyond 32,767."""


def largest_weight(dialect: Dialect) -> int:
    """Return the largest code of a weight that uint8 multiplies. Where sums saturate it is half as large."""
    return _HALF_RANGE if dialect.int8_sums_saturate else FULL_RANGE


def weight_bits(largest: int) -> int:
    """Return the number of bits of codes up to `largest`."""
    return 8 if largest == FULL_RANGE else 7
