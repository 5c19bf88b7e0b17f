"""Both sides opened on this machine, and their answers to a part of the data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.commands.evaluate.parts import SamplePart, SamplePlaces, answer_part
from vitdeploy.commands.evaluate.recorded_reference import RecordedReference
from vitdeploy.commands.evaluate.sides import RunningSide, Side, takes_units
from vitdeploy.data.dataset import Dataset
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.runtime.reference import rebuild_reference
from vitdeploy.session import Session
from vitdeploy.tasks import Task


@dataclass(frozen=True)
class AnsweredPart:
    """The answers to a part of the data; no part if no sample of it could be read.

    Attributes:
        part: the outcomes.
        reference: the name of the reference.
        threads: the number of threads of the artifact; None if its engine does not have them.
        other_pixels: the number of images that had other pixels for a reference that was recorded elsewhere.
        skipped: a message for each damaged image, also of a part without a sample.
    """

    part: SamplePart | None
    reference: str
    threads: int | None
    other_pixels: int = 0
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sides:
    """Both models, opened."""

    pair: tuple[Side, Side]
    reference: str
    deployed: Session
    recorded: RecordedReference | None

    def answer(
        self, task: Task, dataset: Dataset, manifest: Manifest, place: SamplePlaces, advance: Callable[[int], object]
    ) -> AnsweredPart:
        """Answer the samples of a part. Call it once."""
        part = answer_part(self.pair, task, dataset, manifest, place, name_classes(manifest, dataset), advance)
        other_pixels = self.recorded.other_pixels if self.recorded is not None else 0
        return AnsweredPart(part, self.reference, self.deployed.threads, other_pixels, tuple(dataset.skipped))


def open_sides(
    stack: ExitStack, artifact: Artifact, task: Task, dataset: Dataset, count: int, progress: Progress,
    reference: Path | None = None, place: SamplePlaces | None = None,
) -> Sides:  # fmt: skip
    """Open both models until the stack closes.

    Args:
        stack: closes them.
        artifact: the artifact, which runs here.
        task: reads the answers.
        dataset: the data.
        count: the number of samples of the whole evaluation.
        progress: gets the steps.
        reference: a file with the reference's answers; None runs the reference here.
        place: the part of the data that will be answered; None: all of it.
    """
    manifest = artifact.manifest
    recorded = None
    if reference is not None:
        recorded = stack.enter_context(RecordedReference(reference, place))
        recorded.check_about(manifest, dataset)
    deployed = stack.enter_context(open_session(artifact, None, progress))
    side = RunningSide(deployed, task, manifest, manifest.recipe.target.input)
    if recorded is not None:
        return Sides((recorded, side), recorded.about.name, deployed, recorded)
    first, name = open_reference_side(stack, artifact, task, count, progress)
    return Sides((first, side), name, deployed, None)


def open_reference_side(
    stack: ExitStack, artifact: Artifact, task: Task, count: int, progress: Progress
) -> tuple[RunningSide, str]:
    """Open the FP32 reference of an artifact until the stack closes. Return it, and its name."""
    manifest = artifact.manifest
    with progress.step(f"Load the reference {manifest.model.spec}"):
        session = stack.enter_context(rebuild_reference(artifact, None))
        whole = takes_units(session, task, manifest, count)
    return RunningSide(session, task, manifest, "normalized", whole=whole), session.name


def name_classes(manifest: Manifest, dataset: Dataset) -> tuple[str, ...] | None:
    """Return the names of the classes: of the folders where their order is assumed, else of the model."""
    return name_folders(dataset) or manifest.labels


def name_folders(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of the folders if the order of the classes is assumed to be theirs."""
    return dataset.classes if dataset.order == "alphabet" and dataset.classes else ()
