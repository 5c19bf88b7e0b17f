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
_SUGGESTED_SECONDS = 30.0
_LONGER = 3
"""A measurement that is in doubt is to be repeated with this many times its seconds."""


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


def time_until_valid(measure: Callable[[float], Bench], seconds: float | None) -> Bench:
    """Time for so many seconds; without a number for a short while, and for longer if that is doubtful.

    Args:
        measure: times the candidates in turns for so many seconds.
        seconds: as the recipe says. A time that is set beforehand gives intervals that no choice has touched.
    """
    if seconds is not None:
        return measure(seconds)
    bench = measure(SECONDS)
    return bench if bench.valid else measure(LONGER_SECONDS)


def glance(seconds: float | None) -> float:
    """Return the seconds of a measurement that informs, and decides nothing: the recipe's if it has some."""
    return GLANCE_SECONDS if seconds is None else seconds


def pick_fastest(names: Sequence[str], bench: Bench, seconds: float | None) -> Fastest:
    """Return the candidate with the largest certain speed-up over the first, which is the reference.

    A candidate whose own timing is doubtful is not chosen. If the whole measurement is, the reference is.

    Args:
        names: of the candidates.
        bench: their timing, in the same order.
        seconds: of the recipe.
    """
    base = names[0]
    sound = [is_sound(bench, index) for index in range(len(names))]
    speedups = tuple(run.speedup if sound[index] else None for index, run in enumerate(bench.runs))
    best = max(range(len(names)), key=lambda index: certain_speedup(speedups[index]))

    def explain(index: int) -> str:
        if index == best:
            return ""
        if not sound[index]:
            return "its speed is in doubt"
        if best:
            return f"{names[best]} is faster"
        return f"not certainly faster than {base}" if is_undecided(speedups[index]) else f"not faster than {base}"

    undecided = [
        f"{name}, {format_times(ratio)},"
        for name, ratio in zip(names, speedups, strict=True)
        if ratio is not None and is_undecided(ratio)
    ]
    notes = describe_doubts(bench, seconds)
    if undecided and not best:
        doubt = f"it is in doubt whether {' or '.join(undecided)} is faster than {base}"
        notes.append(f"{doubt}. {suggest_seconds(seconds)} measures longer")
    verdict = _describe_choice(names[best], base, speedups[best]) if best or not notes else f"auto kept {base}"
    return Fastest(best, speedups, tuple(map(explain, range(len(names)))), (verdict, *notes))


def is_sound(bench: Bench, index: int) -> bool:
    """Return whether neither a run itself nor the reference nor the machine puts its speed-up in doubt."""
    of_others = {doubt for run in bench.runs[1:] for doubt in run.doubts}
    return not bench.runs[index].doubts and of_others.issuperset(bench.doubts)


def is_undecided(ratio: Interval | None) -> bool:
    """Return whether a speed-up may be above 1, and may be below."""
    return ratio is not None and ratio.ci95[0] <= 1 < ratio.ci95[1]


def certain_speedup(ratio: Interval | None) -> float:
    """Return the speed-up if its whole interval is above 1, else 1."""
    return 1.0 if ratio is None or ratio.ci95[0] <= 1 else ratio.ratio


def format_times(ratio: Interval) -> str:
    """Format a speed-up with its interval, such as `1.25 [1.21, 1.29] ×`."""
    return f"{ratio.ratio:.2f} [{ratio.ci95[0]:.2f}, {ratio.ci95[1]:.2f}] ×"


def describe_doubts(bench: Bench, seconds: float | None) -> list[str]:
    """Return a note if a timing is doubtful, with what to do about it. `seconds` are the recipe's."""
    if bench.valid:
        return []
    return [f"the comparison of speeds is in doubt: {'; '.join(bench.doubts)}. {_INSIST} {suggest_seconds(seconds)}"]


_INSIST = "To insist, stop other processes and measure longer:"


def suggest_seconds(seconds: float | None) -> str:
    """Return the option that measures longer than what was in doubt."""
    return f"--seconds {_SUGGESTED_SECONDS if seconds is None else _LONGER * seconds:g}"


def _describe_choice(best: str, base: str, ratio: Interval | None) -> str:
    if ratio is None:  # the reference itself
        return f"auto kept {base}: nothing else is faster here within the budget"
    return f"auto chose {best}: {format_times(ratio)} as fast as {base} on this machine"
