"""An evaluation on several nodes of a cluster: its size, the answers to a part of the data, and all parts joined."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.artifact import Artifact
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.commands.evaluate.answered import AnsweredPart, open_sides
from vitdeploy.commands.evaluate.evaluate import conclude, save_reference
from vitdeploy.commands.evaluate.labelled import open_labelled
from vitdeploy.commands.evaluate.parts import SamplePlaces
from vitdeploy.commands.evaluate.recorded_reference import join_references
from vitdeploy.commands.evaluate.spread import join, split
from vitdeploy.commands.evaluate.units import read_units, unit_size
from vitdeploy.errors import DataError
from vitdeploy.evidence import Eval
from vitdeploy.progress import Progress

_LEAST_SAMPLES = 500
"""A part takes some seconds to open both models."""


@dataclass(frozen=True)
class Postponed:
    """The number of samples of an evaluation, and of neighbours that are answered at once."""

    count: int
    unit: int

    def split(self, free: int) -> list[SamplePlaces]:
        """Return a part for each free node, or one. A part of fewer samples than its node needs to begin is no gain."""
        return split(self.count, self.unit, max(1, min(free, self.count // _LEAST_SAMPLES)))


@dataclass(frozen=True)
class PartAnswers:
    """The answers to a part of the data.

    Attributes:
        answered: of both sides; None for a host, which answers itself.
        reference: a file with the answers of the reference; None if they were known, or no sample could be read.
    """

    answered: AnsweredPart | None
    reference: bytes | None


def measure_evaluation(artifact: Artifact, most_samples: int | None) -> Postponed | None:
    """Return the size of the evaluation of the recipe's data; None if it has no more than `most_samples`, or no data.

    Raises:
        DataError: the data cannot be opened.
    """
    if most_samples is None or artifact.manifest.recipe.data.evaluation is None:
        return None
    _, dataset = open_labelled(artifact, None)
    return Postponed(len(dataset), unit_size(artifact.manifest)) if len(dataset) > most_samples else None


def answer_place(
    artifact: Artifact,
    reference: Path,
    place: SamplePlaces,
    count: int,
    progress: Progress,
    *,
    reference_only: bool,
) -> PartAnswers:
    """Answer a part of the recipe's data.

    Args:
        artifact: the artifact or bundle.
        reference: the file with the reference's answers. If it is not there, the reference answers this part.
        place: the part.
        count: the number of samples of the whole evaluation.
        progress: gets the warnings.
        reference_only: the artifact does not answer: a host runs it.

    Raises:
        VitdeployError: see `evaluate`.
    """
    task, dataset = open_labelled(artifact, None)
    with ExitStack() as stack:
        recorded = None
        if not reference.exists():
            reference = stack.enter_context(scratch_folder("reference")) / "reference.npz"
            try:
                save_reference(artifact, None, reference, progress, place=place)
            except DataError:
                if any(True for _ in read_units(dataset, artifact.manifest, place.start, place.stop)):
                    raise
                return PartAnswers(AnsweredPart(None, "", None, 0, tuple(dataset.skipped)), None)
            recorded = reference.read_bytes()
        if reference_only:
            return PartAnswers(None, recorded)
        sides = open_sides(stack, artifact, task, dataset, count, progress, reference, place)
        return PartAnswers(sides.answer(task, dataset, artifact.manifest, place, lambda _: None), recorded)


def join_places(artifact: Artifact, answers: Sequence[PartAnswers], reference: Path, progress: Progress) -> Eval | None:
    """Join the answers to all parts, in the order of the data, and store the evaluation beside the artifact.

    Args:
        artifact: the artifact or bundle.
        answers: to all parts.
        reference: the place of the reference's answers, which are stored there if they are new.
        progress: gets the steps and warnings.

    Returns:
        The evaluation; None if only the reference has answered.

    Raises:
        VitdeployError: see `evaluate`.
    """
    recorded = [each.reference for each in answers if each.reference is not None]
    if recorded:
        with scratch_folder("reference") as folder:
            files = [folder / f"{number}.npz" for number in range(len(recorded))]
            for file, contents in zip(files, recorded, strict=True):
                file.write_bytes(contents)
            join_references(files, reference)
    answered = [each.answered for each in answers if each.answered is not None]
    if len(answered) < len(answers):
        return None
    task, dataset = open_labelled(artifact, None)
    return conclude(artifact, task, dataset, join(answered, dataset), progress)
