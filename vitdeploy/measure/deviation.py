"""Find the first place at which an engine computes other numbers than its graph. Knows no model.

The graph itself, computed operator by operator, differs from float32 by what its precision costs. A sound engine rounds
in other places, so it differs from the graph by about as much, and both errors grow together from block to block. A
fault is a jump of the engine's error against that, and against the errors before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MARGIN = 4.0
"""Times the energy of the graph's own error that a sound engine's error has at most. Independent errors of equal size
give 2."""

MOVED_TIMES = 2.0
"""Times the energy by which small noise in the image moves the values of a graph with integers: what the engine's own
rounding may do there, where that is less than the graph's error. Sound INT8 engines of the fake had up to 1.3."""

JUMP = 4.0
"""A fault has this many times the deviation of everything that it is computed from."""

FLOORS: Mapping[str, float] = {"fp32": 2e-5, "tf32": 3e-3, "fp16": 2e-3, "bf16": 2e-2, "int8": 2e-2}
"""Relative errors (root mean square) that prove nothing, by the type in which an engine computes what is not quantized.
The graph in ONNX Runtime does not have the roundings to TF32, nor those of activations that are quantized at run time
(int8)."""

RULE = (
    f"at the first place where the error against the graph's own values has more than {MARGIN:g} times the energy of "
    f"what the graph loses against FP32 there, and {JUMP:g} times that of the places that it is computed from"
)


@dataclass(frozen=True)
class Place:
    """A place at which an engine is compared with its graph. Energies are shares of the signal's.

    Attributes:
        error: energy of the difference between the engine and the graph; None if it cannot be compared.
        expected: energy of the difference between the graph and float32.
        reads: the places that it is computed from, by their indices.
    """

    error: float | None
    expected: float
    reads: tuple[int, ...] = ()


def find_fault(places: Sequence[Place], floor: float) -> int | None:
    """Return the index of the first place that is off, by `RULE`; None if there is none.

    Args:
        places: in the order in which they are computed.
        floor: the relative error that proves nothing, see `FLOORS`.
    """
    ratios = measure_deviations(places, floor)
    for number, ratio in enumerate(ratios):
        if ratio is not None and ratio > 1 and ratio > JUMP * _before(number, places, ratios):
            return number
    return None


def find_steepest(places: Sequence[Place], floor: float) -> int | None:
    """Return the index of the place at which the deviation grows most; None if nothing can be compared."""
    ratios = measure_deviations(places, floor)
    growth = {n: r / max(_before(n, places, ratios), _LEAST) for n, r in enumerate(ratios) if r is not None}
    return max(growth, key=growth.__getitem__, default=None)


def measure_deviations(places: Sequence[Place], floor: float) -> list[float | None]:
    """Return the error of each place as a multiple of what a sound engine may have there."""
    return [None if place.error is None else place.error / largest_error(place, floor) for place in places]


def largest_error(place: Place, floor: float) -> float:
    """Return the energy of the difference that a sound engine has at most, as a share of the signal's."""
    return MARGIN * place.expected + floor**2


_LEAST = 1e-3
"""Deviations below it are alike: growth from nothing would be infinite."""


def _before(number: int, places: Sequence[Place], ratios: Sequence[float | None]) -> float:
    """Return the largest deviation among what a place is computed from, beyond places that cannot be compared."""
    worst, pending, visited = 0.0, [*places[number].reads], set(places[number].reads)
    while pending:
        read = pending.pop()
        ratio = ratios[read]
        if ratio is not None:
            worst = max(worst, ratio)
        else:
            pending += set(places[read].reads) - visited
            visited.update(places[read].reads)
    return worst
