"""`vitdeploy eval`: accuracy of an artifact and of its FP32 reference on the same samples."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

from vitdeploy.artifact import Artifact, atomic_file
from vitdeploy.artifact.layout import FLIPS, SAMPLES
from vitdeploy.commands.evaluate.answered import (
    AnsweredPart,
    name_classes,
    name_folders,
    open_reference_side,
    open_sides,
)
from vitdeploy.commands.evaluate.flips import describe_flips
from vitdeploy.commands.evaluate.labelled import open_labelled
from vitdeploy.commands.evaluate.parts import SamplePlaces, merge
from vitdeploy.commands.evaluate.recorded_reference import About, Recorder, describe_other_pixels
from vitdeploy.commands.evaluate.spread import answer_on_cluster
from vitdeploy.commands.evaluate.thumbnails import pack_thumbnails
from vitdeploy.commands.evaluate.units import batch_size, read_units
from vitdeploy.data.dataset import Dataset
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Eval
from vitdeploy.frozen import replace
from vitdeploy.measure import accuracy
from vitdeploy.measure.groups import score_classes
from vitdeploy.measure.operating import compare_at
from vitdeploy.measure.samples import count_once, pack
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import refuse_decoder
from vitdeploy.runtime.provenance import describe_provenance
from vitdeploy.tasks import Task
from vitdeploy.verdict import explain_calibrated


def evaluate(
    artifact: Artifact,
    data: str | None,
    progress: Progress,
    *,
    limit: int | None = None,
    reference: Path | None = None,
    at_threshold: float | None = None,
    ray: str | None = None,
) -> Eval:
    """Compare the accuracy of the artifact and of the FP32 reference on the same samples, and store the result.

    Args:
        artifact: the artifact, which runs here.
        data: DATA of the command line; None is the recipe's.
        progress: gets the steps and warnings.
        limit: the number of samples to stop after.
        reference: a file with the reference's answers (see `save_reference`); None runs the reference here.
        at_threshold: also compare what both sides find with scores of at least this.
        ray: the address of a Ray cluster whose nodes answer parts of the data; None: this process does. The result is
            the same.

    Raises:
        UsageError: no data is named, on the command line or in the recipe.
        DataError: the data has no labels of this task or is damaged, or the model's outputs are not of this task.
        SourceError: the reference cannot be loaded here.
        MeasureError: the saved reference is of another model or of other samples.
    """
    refuse_decoder(artifact, "eval")
    manifest = artifact.manifest
    task, dataset = open_labelled(artifact, data)
    count = min(len(dataset), limit or len(dataset))
    if ray is not None:
        answered = answer_on_cluster(ray, artifact, dataset, limit, progress)
    else:
        with ExitStack() as stack:
            sides = open_sides(stack, artifact, task, dataset, count, progress, reference)
            with progress.step(f"Evaluate on {dataset.spec}", count) as advance:
                answered = sides.answer(task, dataset, manifest, SamplePlaces(most=limit), advance)
    return conclude(artifact, task, dataset, answered, progress, limit=limit, at_threshold=at_threshold)


def conclude(
    artifact: Artifact,
    task: Task,
    dataset: Dataset,
    answered: AnsweredPart,
    progress: Progress,
    *,
    limit: int | None = None,
    at_threshold: float | None = None,
) -> Eval:
    """Compare the answers of both sides to all samples, and store the result: see `evaluate`."""
    manifest = artifact.manifest
    part = merge([answered.part] if answered.part is not None else [])
    outcomes = part.outcomes
    if note := describe_other_pixels(answered.other_pixels, len(part)):
        progress.warn(note)
    with progress.step("Compare both sides"):
        distinct = count_once(outcomes)
        counted = accuracy.pair_outcomes(task, distinct)
        folders, names = name_folders(dataset), name_classes(manifest, dataset)
        evaluation = accuracy.compare_outcomes(task, counted, names)
        point = None if at_threshold is None else compare_at(task, counted, at_threshold)
    repeated = len(outcomes.digest) - len(distinct.digest)
    if repeated:
        progress.warn(f"{repeated:,} of {len(outcomes.digest):,} samples repeat an image, and are not counted again")
    if calibrated := explain_calibrated(manifest, dataset.digest, distinct):
        progress.warn(calibrated)
    if dataset.order == "alphabet" and task.named_classes and not evaluation.doubts:
        progress.warn(
            "the model has no labels, so the folders are assumed to be its classes in alphabetical order; the answers "
            "fit no other order better"
        )
    for doubt in evaluation.doubts:
        progress.warn(doubt)
    raw, (flipped, thumbnails) = pack(counted), describe_flips(part, task, names)
    pictures = pack_thumbnails(thumbnails)
    evaluation = replace(
        evaluation,
        provenance=describe_provenance(manifest, answered.threads),
        reference=answered.reference,
        data=dataset.spec,
        data_digest=dataset.digest,
        skipped=len(part.skipped),
        samples=hashlib.sha256(raw).hexdigest(),
        available=len(dataset),
        limit=limit,
        repeated=repeated,
        order=dataset.order if task.named_classes else "",
        class_names=folders,
        flipped=flipped,
        thumbnails=hashlib.sha256(pictures).hexdigest(),
        classes=score_classes(task, counted, names),
        operating_point=point,
    )
    return artifact.write_evidence(evaluation, {SAMPLES: raw, FLIPS: pictures})


def save_reference(
    artifact: Artifact,
    data: str | None,
    out: Path,
    progress: Progress,
    *,
    limit: int | None = None,
    place: SamplePlaces | None = None,
) -> About:
    """Run the FP32 reference of an artifact or bundle, and save its answers for machines without PyTorch.

    `place` is the part of the data that it answers, by default the first `limit` samples.

    Raises:
        UsageError, DataError, SourceError: see `evaluate`.
        ArtifactError: `out` cannot be written.
    """
    manifest = artifact.manifest
    task, dataset = open_labelled(artifact, data)
    count, size = min(len(dataset), limit or len(dataset)), batch_size(manifest)
    place = place or SamplePlaces(most=limit)
    with ExitStack() as stack:
        side, name = open_reference_side(stack, artifact, task, count, progress)
        try:
            with atomic_file(out) as temporary, temporary.open("wb") as file, Recorder(file) as recorder:
                with progress.step(f"Answer {dataset.spec}", count) as advance:
                    for unit in read_units(dataset, manifest, place.start, place.stop, place.most):
                        recorder.add(unit, side.answer_unit(unit, size))
                        advance(len(unit.places))
                return recorder.finish(name, manifest, dataset, side.values())
        except OSError as error:
            raise ArtifactError(f"{out} cannot be written: {error.strerror}", fix="Choose another file.") from None
