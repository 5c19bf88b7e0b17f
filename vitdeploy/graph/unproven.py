"""Find the outputs for which agreement with the reference proves nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vitdeploy.artifact import Parity
from vitdeploy.graph.parity import ABSOLUTE_FLOOR, FLOAT32_LIMIT
from vitdeploy.session import Array

_SAME = 1e-6
"""The rounding of one and the same value in batches of several sizes, relative to the largest."""


def find_unproven(parity: Parity) -> dict[str, str]:
    """Return the outputs that agree only because their values are below `ABSOLUTE_FLOOR`, with a sentence for each.

    An output of small values that also agrees by its own scale is none of them, nor one that is zero on both sides.
    """
    reasons: dict[str, str] = {}
    for name in dict.fromkeys(output.name for case in parity.cases for output in case):
        cases = [output for case in parity.cases for output in case if output.name == name and not output.discrete]
        largest = max((output.reference_max for output in cases), default=0.0)
        agrees = all(output.max_abs <= FLOAT32_LIMIT * output.reference_max for output in cases)
        if largest <= ABSOLUTE_FLOOR and not agrees:
            reasons[name] = (
                f"output {name!r} reaches only {largest:.1g}, and differences up to {ABSOLUTE_FLOOR:.0e} count as "
                "rounding: parity proves nothing for it"
            )
    return reasons


def find_blind(examples: Sequence[Mapping[str, Array]]) -> dict[str, str]:
    """Return the outputs that do not depend on the image, with a sentence for each.

    Args:
        examples: the reference's outputs on batches of different images.
    """
    images = len(examples)
    reasons: dict[str, str] = {}
    for name in examples[0] if images > 1 else ():
        values = [outputs[name] for outputs in examples]
        if _is_one_value(values):
            reasons[name] = (
                f"output {name!r} is the same for all {images} batches of example images: parity proves nothing for it"
            )
    return reasons


def _is_one_value(values: Sequence[Array]) -> bool:
    """Return whether arrays are equal but for rounding. If the batch varies, their first images are compared."""
    one = len({value.shape for value in values}) == 1
    rows = [value if one or not value.ndim else value[:1] for value in values]
    if len({row.shape for row in rows}) > 1 or not rows[0].size:
        return False
    first = rows[0].astype(np.float64)
    scale = float(np.abs(first).max())
    return all(float(np.abs(row - first).max()) <= _SAME * scale for row in rows[1:])
