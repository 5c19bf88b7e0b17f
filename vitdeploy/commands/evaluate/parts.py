"""A part of the data, answered by both sides, and parts that become one whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitdeploy.artifact import Manifest
from vitdeploy.commands.evaluate.gathered import Gathered
from vitdeploy.commands.evaluate.sides import Side
from vitdeploy.commands.evaluate.thumbnails import draw_thumbnail
from vitdeploy.commands.evaluate.units import Unit, batch_size, group_turns, read_units
from vitdeploy.data.dataset import Dataset
from vitdeploy.errors import DataError
from vitdeploy.measure.samples import Outcomes
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array
from vitdeploy.tasks import PerSample, Task, Values

_MAX_FLIPS = 400  # the best of them are shown


@dataclass(frozen=True)
class Flipped:
    """A sample to which the two sides give different answers.

    Attributes:
        index: its number among the answered samples.
        name: its name.
        picture: a small picture of it, uint8 (height, width, 1 or 3).
        answers: of the reference and of the deployed model, in words.
    """

    index: int
    name: str
    picture: Array
    answers: tuple[str, str]


@dataclass(frozen=True)
class SamplePart:
    """The outcomes of the samples of a part, the first with different answers, and a message for each damaged one."""

    outcomes: Outcomes
    flips: tuple[Flipped, ...]
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.outcomes.digest)


@dataclass(frozen=True)
class SamplePlaces:
    """A part of the data: its places in the fixed order, and the most samples to answer."""

    start: int = 0
    stop: int | None = None
    most: int | None = None


def answer_part(
    sides: tuple[Side, Side],
    task: Task,
    dataset: Dataset,
    manifest: Manifest,
    place: SamplePlaces,
    names: Sequence[str] | None,
    advance: Callable[[int], object],
) -> SamplePart | None:
    """Let both sides answer the samples of a part.

    Args:
        sides: the reference and the artifact, which have answered nothing yet.
        task: compares their answers.
        dataset: the whole data.
        manifest: of the artifact.
        place: the part.
        names: of the classes.
        advance: gets the number of samples after each turn.

    Returns:
        The part; None if no sample of it could be read.
    """
    gathered = Gathered()
    flips: list[Flipped] = []
    count = 0
    for turn in group_turns(read_units(dataset, manifest, place.start, place.stop, place.most)):
        first, second = ([side.answer_unit(unit, batch_size(manifest)) for unit in turn] for side in sides)
        for unit, a, b in zip(turn, first, second, strict=True):
            agreement = task.compare_answers(a.answers, b.answers, (a.finite, b.finite))
            new = _find_flips(task, unit, a, b, agreement, count, names, manifest.preprocess, _MAX_FLIPS - len(flips))
            flips += new
            gathered.add({"agreement": agreement, "digest": np.array(unit.batch.digests(), np.uint64)})
            count += len(unit.batch.names)
        advance(sum(len(unit.batch.names) for unit in turn))
    if not count:
        return None
    own = gathered.join()
    outcomes = Outcomes(
        digest=own["digest"],
        reference=sides[0].values(),
        deployed=sides[1].values(),
        agreement=own["agreement"],
        finite=np.concatenate(sides[1].finite),
    )
    return SamplePart(outcomes, tuple(flips), tuple(dataset.skipped))


def merge(parts: Sequence[SamplePart]) -> SamplePart:
    """Return parts as one whole, in their order.

    Raises:
        DataError: there are none.
    """
    if not parts:
        raise DataError("no sample could be read", fix="Check the files.")
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    flips = [
        replace(flipped, index=start + flipped.index)
        for start, part in zip(starts, parts, strict=False)
        for flipped in part.flips
    ]
    every = [part.outcomes for part in parts]
    outcomes = Outcomes(
        digest=np.concatenate([each.digest for each in every]),
        reference=_join([each.reference for each in every]),
        deployed=_join([each.deployed for each in every]),
        agreement=np.concatenate([each.agreement for each in every]),
        finite=np.concatenate([each.finite for each in every]),
    )
    return SamplePart(outcomes, tuple(flips[:_MAX_FLIPS]), tuple(message for part in parts for message in part.skipped))


def _join(values: Sequence[Values]) -> Values:
    return {name: np.concatenate([each[name] for each in values]) for name in values[0]}


def _find_flips(
    task: Task,
    unit: Unit,
    reference: PerSample,
    deployed: PerSample,
    agreement: Array,
    start: int,
    names: Sequence[str] | None,
    preprocess: Preprocess,
    most: int,
) -> list[Flipped]:
    """Return the flips of a unit: with words and a small picture, as maps of 400 images would fill the memory."""
    return [
        Flipped(
            start + i,
            unit.batch.names[i],
            draw_thumbnail(unit.batch.images[i], preprocess),
            (
                task.summarize_answer(reference.answers[i], names),
                task.summarize_answer(deployed.answers[i], names),
            ),
        )
        for i in np.flatnonzero(agreement < task.flip_below).tolist()[:most]
    ]
