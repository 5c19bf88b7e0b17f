"""Find the step at which two computations of the same thing diverge. Knows no model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LIMIT_DB = 20.0
"""Below it the noise has more than a tenth of the signal's amplitude, and later steps compute on another tensor. Sound
artifacts stay well above: a single INT8 linear has 36 to 50 dB (Fashion-MNIST ViT, DeiT-Tiny, ViT-Base); block ends
have 38 to 44 dB in INT8 and 66 dB in FP16 (digits ViT)."""

TIMES = 10.0
"""A step that adds more than this many times the median noise of the other steps is not part of a gradual decline."""

NEGLIGIBLE_DB = 40.0
"""A step whose noise is this far below the signal (1 % of its amplitude) is never the cause, however little the others
add."""

RULE = (
    f"at the first step that adds more than {TIMES:g} times the median noise of the other steps of its kind, unless "
    f"that noise is {NEGLIGIBLE_DB:g} dB or more below the signal; or, when the signal is first less than "
    f"{LIMIT_DB:g} dB above the noise, at the step that has added most of it"
)


@dataclass(frozen=True)
class Step:
    """One step of a computation.

    Attributes:
        sqnr_db: signal to noise ratio of its result; None if the result cannot be compared.
        before_db: the lowest signal to noise ratio of its inputs.
        alike: whether it is compared with the other steps of its kind. Not so a residual sum, which adds no noise, and
            not so a head, which has no residual stream to dilute its noise.
    """

    sqnr_db: float | None
    before_db: float
    alike: bool = True

    @property
    def added(self) -> float:
        """The noise that its inputs do not have, as a share of the signal's energy."""
        return 0.0 if self.sqnr_db is None else max(0.0, noise_share(self.sqnr_db) - noise_share(self.before_db))


def noise_share(sqnr_db: float) -> float:
    """Return the energy of the noise / the energy of the signal."""
    return float(10 ** (-sqnr_db / 10))


def find_divergence(steps: Sequence[Step]) -> int | None:
    """Return the index of the step that diverges, by `RULE`; None if none does."""
    for number, step in enumerate(steps):
        if step.sqnr_db is None:
            continue
        if _stands_out(number, steps):
            return number
        if step.sqnr_db < LIMIT_DB:  # an earlier step may have added most of the noise
            return find_noisiest(steps[: number + 1])
    return None


def find_noisiest(steps: Sequence[Step]) -> int | None:
    """Return the index of the step that adds most noise; None if none can be compared."""
    comparable = [number for number, step in enumerate(steps) if step.sqnr_db is not None]
    return max(comparable, key=lambda number: steps[number].added, default=None)


def _stands_out(number: int, steps: Sequence[Step]) -> bool:
    """Compare a step with the others only: of two steps, it would be half of the median."""
    others = [s.added for i, s in enumerate(steps) if i != number and s.alike and s.sqnr_db is not None]
    added = steps[number].added
    return (
        steps[number].alike
        and bool(others)
        and added > TIMES * statistics.median(others)
        and added > noise_share(NEGLIGIBLE_DB)
    )
