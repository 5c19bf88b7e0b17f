"""Prompts of a promptable model: points on an object or beside it, and a box around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitdeploy.errors import DataError
from vitdeploy.session import Array

SLOTS = 16
"""The number of points that a decoder takes. Slots without a point are empty; a box takes two."""
BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT, EMPTY = 0, 1, 2, 3, -10
"""The labels of points: those of segment_anything, and -10 for padding as in transformers."""
COORDINATES, LABELS = "point_coords", "point_labels"
"""The inputs of a decoder that hold a prompt, by the names that exports of SAM have."""


@dataclass(frozen=True)
class Prompt:
    """A prompt: points on an object or beside it, a box, or both.

    Attributes:
        points: x and y of each point, in pixels.
        foreground: for each point, True if it is on the object, False if it is beside it.
        box: left, top, right and bottom, in pixels; None for none.
    """

    points: tuple[tuple[float, float], ...] = ()
    foreground: tuple[bool, ...] = ()
    box: tuple[float, float, float, float] | None = None

    @property
    def slots(self) -> int:
        """The number of slots that it fills."""
        return len(self.points) + (0 if self.box is None else 2)

    def __str__(self) -> str:
        parts = [] if not self.points else [f"{len(self.points)} point{'s' if len(self.points) > 1 else ''}"]
        return " and ".join([*parts, *([] if self.box is None else ["a box"])])

    def scale(self, x: float, y: float, left: float = 0.0, top: float = 0.0) -> Prompt:
        """Return the prompt with coordinates times `x` and `y`, less the corner `left`, `top`."""

        def move(values: Sequence[float]) -> tuple[float, ...]:
            return tuple(
                value * (y if place % 2 else x) - (top if place % 2 else left) for place, value in enumerate(values)
            )

        points = tuple((moved[0], moved[1]) for moved in map(move, self.points))
        box = None
        if self.box is not None:
            a, b, c, d = move(self.box)
            box = (a, b, c, d)
        return Prompt(points, self.foreground, box)


def fill_slots(prompt: Prompt) -> dict[str, Array]:
    """Return the inputs of a decoder for a prompt in pixels of the model's input.

    Returns:
        float32 coordinates (1, slots, 2), x first, and labels (1, slots).

    Raises:
        DataError: there are no points and no box, or more than fit.
    """
    if not 1 <= prompt.slots <= SLOTS:
        raise DataError(
            f"a prompt of {prompt.slots} points does not fit: a decoder takes 1 to {SLOTS}, and a box counts as two",
            fix="Give fewer points." if prompt.slots else "Give --points or --box.",
        )
    corners = () if prompt.box is None else (prompt.box[:2], prompt.box[2:])
    labels = [*(FOREGROUND if on else BACKGROUND for on in prompt.foreground)]
    labels += [TOP_LEFT, BOTTOM_RIGHT] if corners else []
    coordinates = np.zeros((1, SLOTS, 2), np.float32)
    coordinates[0, : len(labels)] = [*prompt.points, *corners]
    padded = np.full((1, SLOTS), EMPTY, np.float32)
    padded[0, : len(labels)] = labels
    return {COORDINATES: coordinates, LABELS: padded}


def make_prompts(height: int, width: int) -> tuple[Prompt, ...]:
    """Return prompts to compare models on, for images of these sides: a point, several points, a box, points in a box.

    They cover every kind of label, few points and all of them.
    """
    middle = Prompt(((0.5, 0.5),), (True,))
    several = Prompt(((0.3, 0.4), (0.7, 0.6), (0.1, 0.9)), (True, True, False))
    box = Prompt(box=(0.2, 0.25, 0.8, 0.7))
    count = SLOTS - 2
    spread = tuple((0.3 + 0.4 * n / count, 0.35 + 0.3 * (n * 5 % count) / count) for n in range(count))
    filled = Prompt(spread, tuple(n % 3 > 0 for n in range(count)), (0.2, 0.25, 0.8, 0.7))
    return tuple(prompt.scale(width, height) for prompt in (middle, several, box, filled))
