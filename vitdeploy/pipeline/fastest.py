"""Choose the fastest of several candidates. Only a certain speed-up counts; a doubtful timing decides nothing.

Export uses it for candidates on a workstation, and compile for the variants of a bundle on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitdeploy.evidence import Bench, Interval

DEFAULT_MAX_DROP_PP = 0.5
"""The accuracy that `auto` may lose by default, in percentage points."""

GLANCE_SECONDS = 1.5
"""A short measurement, which only shows whether something is slower. `bench` measures thoroughly."""
SECONDS = 3.0
LONGER_SECONDS = 10.0
"""The second measurement, if the first one is doubtful."""


@dataclass(frozen=True)
class Fastest:
    """The fastest candidate, and what is to be said about each.

    Attributes:
        index: of the fastest one; 0 is the reference.
        speedups: of each over the reference; None for the reference, and if the timing is doubtful.
        reasons: why each was not chosen; empty for the chosen one.
        notes: for the user.
    """

    index: int
    speedups: tuple[Interval | None, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


def time_until_valid(measure: Callable[[float], Bench]) -> Bench:
    """Time for a short while; for longer if the first measurement is doubtful.

    Args:
        measure: times the candidates in turns for so many seconds.
    """
    bench = measure(SECONDS)
    return bench if bench.valid else measure(LONGER_SECONDS)


def pick_fastest(names: Sequence[str], bench: Bench) -> Fastest:
    """Return the candidate with the largest certain speed-up over the first, which is the reference.

    Args:
        names: of the candidates.
        bench: their timing, in the same order.
    """
    base = names[0]
    speedups = tuple(run.speedup if bench.valid else None for run in bench.runs)
    best = max(range(len(names)), key=lambda index: certain_speedup(speedups[index]))
    if not bench.valid:
        rejection = "its speed is in doubt"
    else:
        rejection = f"{names[best]} is faster" if best else f"not faster than {base}"
    verdict = _describe_choice(names[best], base, speedups[best]) if bench.valid else f"auto kept {base}"
    reasons = tuple("" if index == best else rejection for index in range(len(names)))
    return Fastest(best, speedups, reasons, (verdict, *describe_doubts(bench)))


def certain_speedup(ratio: Interval | None) -> float:
    """Return the speed-up if its whole interval is above 1, else 1."""
    return 1.0 if ratio is None or ratio.ci95[0] <= 1 else ratio.ratio


def format_times(ratio: Interval) -> str:
    """Format a speed-up with its interval, such as `1.25 [1.21, 1.29] ×`."""
    return f"{ratio.ratio:.2f} [{ratio.ci95[0]:.2f}, {ratio.ci95[1]:.2f}] ×"


def describe_doubts(bench: Bench) -> list[str]:
    """Return a note if a timing is doubtful."""
    return [] if bench.valid else [f"the comparison of speeds is in doubt: {'; '.join(bench.doubts)}"]


def _describe_choice(best: str, base: str, ratio: Interval | None) -> str:
    if ratio is None:  # the reference itself
        return f"auto kept {base}: nothing else is faster here within the budget"
    return f"auto chose {best}: {format_times(ratio)} as fast as {base} on this machine"
