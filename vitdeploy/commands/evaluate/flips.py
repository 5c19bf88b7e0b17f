"""The samples to which the reference and the artifact give different answers, for people to look at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vitdeploy.commands.evaluate.sides import AnsweredByBoth, Flipped
from vitdeploy.data.frames import middle_frame
from vitdeploy.data.preprocess import as_image, read_colours
from vitdeploy.evidence import Flip
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array
from vitdeploy.tasks import Task, Values, class_name

SHOWN = 24
_SIDE = 96
_ORDER = ("lost", "", "gained")


def describe_flips(
    answered: AnsweredByBoth, task: Task, names: tuple[str, ...] | None
) -> tuple[tuple[Flip, ...], list[Array]]:
    """Return the first flips, those first that only the reference gets right; and the image of each."""
    outcomes = answered.outcomes
    labels = task.find_groups(outcomes.reference)

    def describe(flipped: Flipped) -> Flip:
        i = flipped.index
        reference, deployed = (task.summarize_answer(answer, names) for answer in flipped.answers)
        return Flip(
            name=flipped.name,
            label="" if labels is None else class_name(int(labels[i]), names),
            reference=reference,
            deployed=deployed,
            reference_score=_score(outcomes.reference, i),
            deployed_score=_score(outcomes.deployed, i),
            agreement=float(outcomes.agreement[i]),
            kind=_find_kind(task, outcomes.reference, outcomes.deployed, i),
        )

    pairs = [(describe(flipped), flipped.image) for flipped in answered.flips]
    shown = sorted(pairs, key=lambda pair: _ORDER.index(pair[0].kind))[:SHOWN]
    return tuple(flip for flip, _ in shown), [image for _, image in shown]


def draw_thumbnails(images: Sequence[Array], preprocess: Preprocess) -> bytes:
    """Return an `.npz` with a small picture of each image, uint8 (height, width, 1 or 3), by its number.

    Args:
        images: as the model sees them, uint8 (planes, height, width); a clip is shown by its frame in the middle.
        preprocess: the model's preprocessing.
    """
    buffer = io.BytesIO()
    pictures = {
        str(number): _shrink(read_colours(middle_frame(image), preprocess)) for number, image in enumerate(images)
    }
    np.savez_compressed(buffer, allow_pickle=False, **pictures)
    return buffer.getvalue()


def _shrink(colours: Array) -> Array:
    picture = as_image(np.ascontiguousarray(colours.transpose(1, 2, 0)))
    picture.thumbnail((_SIDE, _SIDE))
    small = np.asarray(picture)
    return small[:, :, None] if small.ndim == 2 else small


def _score(values: Values, index: int) -> float | None:
    return float(values["confidence"][index]) if "confidence" in values else None


def _find_kind(task: Task, reference: Values, deployed: Values, index: int) -> Literal["lost", "gained", ""]:
    metric = next(iter(task.units), "")
    if metric not in task.binary or metric not in reference:
        return ""
    before, now = reference[metric][index], deployed[metric][index]
    return "lost" if before > now else "gained" if now > before else ""
