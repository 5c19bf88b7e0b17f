"""Where two computations of the same thing part, from the noise along the way. Knows no model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LIMIT_DB = 20.0
"""Noise of a tenth of the signal's amplitude: what follows computes on another tensor. Sound artifacts stay clear of
it: an INT8 linear by itself gives 36 to 50 dB (Fashion-MNIST ViT, DeiT-Tiny, ViT-Base), block ends of INT8 38 to 44 dB
and of FP16 66 dB (digits ViT)."""

TIMES = 10.0
"""A step that adds this many times the noise of the median step is no part of a gradual decline."""

NEGLIGIBLE_DB = 40.0
"""Noise that is less, one per cent of the amplitude, is nobody's fault, however little the others add."""

RULE = (
    f"at the first that adds more than {TIMES:g} times the noise of the median of its like, unless the signal is still "
    f"{NEGLIGIBLE_DB:g} dB above that; or, where the signal first falls below {LIMIT_DB:g} dB, at what had added most"
)


@dataclass(frozen=True)
class Step:
    """One step of a computation.

    Attributes:
        sqnr_db: of its result; None where that cannot be compared.
        before_db: of the worst of what it reads.
        alike: whether it is one of a kind: only those can stand out, and only from each other. A sum of residuals adds
            nothing, and a head is no block: it has no stream around it to dilute what it adds.
    """

    sqnr_db: float | None
    before_db: float
    alike: bool = True

    @property
    def added(self) -> float:
        """The noise that is in its result and was not in what it reads, as a share of the signal's energy."""
        return 0.0 if self.sqnr_db is None else max(0.0, share(self.sqnr_db) - share(self.before_db))


def share(sqnr_db: float) -> float:
    """Noise / signal."""
    return float(10 ** (-sqnr_db / 10))


def first_apart(steps: Sequence[Step]) -> int | None:
    """Which step is where both part, by `RULE`; None if they do not."""
    for number, step in enumerate(steps):
        if step.sqnr_db is None:
            continue
        if _stands_out(number, steps):
            return number
        if step.sqnr_db < LIMIT_DB:  # it only was the last straw, maybe
            return most_added(steps[: number + 1])
    return None


def most_added(steps: Sequence[Step]) -> int | None:
    """The step that adds most noise; None if none can be compared."""
    known = [number for number, step in enumerate(steps) if step.sqnr_db is not None]
    return max(known, key=lambda number: steps[number].added, default=None)


def _stands_out(number: int, steps: Sequence[Step]) -> bool:
    """Against the others: with two steps, the median of both would be half of the larger one."""
    others = [s.added for i, s in enumerate(steps) if i != number and s.alike and s.sqnr_db is not None]
    added = steps[number].added
    return (
        steps[number].alike
        and bool(others)
        and added > TIMES * statistics.median(others)
        and added > share(NEGLIGIBLE_DB)
    )
