"""The range of INT8 weights on this CPU: without VNNI, sums of their products can saturate."""

from __future__ import annotations

from vitdeploy import environment

FULL_RANGE = 127
_HALF_RANGE = 64
"""255 · 64 · 2 = 32,640 fits int16: AVX2 adds pairs of u8 x s8 products there and saturates beyond 32,767."""


def largest_weight() -> int:
    """Return the largest code of a weight. Without INT8 dot products (VNNI) it is half as large."""
    return FULL_RANGE if environment.host().int8_dot_product else _HALF_RANGE


def weight_bits(largest: int) -> int:
    """Return the number of bits of codes up to `largest`."""
    return 8 if largest == FULL_RANGE else 7
