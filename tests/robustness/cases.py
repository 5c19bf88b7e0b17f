"""A case of fuzzing: its id, its random numbers, and how it was judged."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

FINE, REFUSED = "fine", "refused"
CRASH, HANG, MEMORY, WRONG, IMPOSSIBLE = "crash", "hang", "memory", "wrong content", "pass on impossible evidence"
BAD = (CRASH, HANG, MEMORY, WRONG, IMPOSSIBLE)


@dataclass(frozen=True)
class Judged:
    """How a case ended.

    Attributes:
        outcome: `fine` (accepted, and rightly), `refused` (one line of error), or one of `BAD`.
        what: the mutation, and for a bad outcome what was seen.
    """

    outcome: str
    what: str = ""


class Kind(Protocol):
    """A kind of input. One process prepares it once, and then judges one case after the other."""

    name: str
    seconds: float
    """The time limit of one case."""
    mebibytes: int
    """The memory that one case may take on top of what the process has."""

    def prepare(self, folder: Path) -> None:
        """Make what all cases start from."""

    def judge(self, number: int, rng: random.Random, folder: Path) -> Judged:
        """Mutate, try, and judge. Errors of vitdeploy's own tree may be raised: they count as `refused`."""


def make_rng(kind: str, seed: int, number: int) -> random.Random:
    """Return the random numbers of a case. They depend on nothing else, so that a case can be repeated."""
    return random.Random(f"{kind}:{seed}:{number}")
