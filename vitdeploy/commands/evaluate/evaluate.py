"""`vitdeploy eval`: accuracy of an artifact and of its FP32 reference on the same samples."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

from vitdeploy import tasks
from vitdeploy.artifact import Artifact, atomic_file
from vitdeploy.artifact.layout import FLIPS, SAMPLES
from vitdeploy.commands.evaluate.flips import describe_flips, draw_thumbnails
from vitdeploy.commands.evaluate.recorded_reference import About, RecordedReference, Recorder
from vitdeploy.commands.evaluate.sides import RunningSide, Side, answer_all, batch_size
from vitdeploy.data.dataset import Dataset, named_batches
from vitdeploy.data.opening import open_dataset
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.evidence import Eval
from vitdeploy.frozen import replace
from vitdeploy.measure import accuracy
from vitdeploy.measure.groups import score_classes
from vitdeploy.measure.operating import compare_at
from vitdeploy.measure.samples import count_once, pack
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import describe_input, open_inputs, open_session, refuse_decoder
from vitdeploy.runtime.provenance import describe_provenance
from vitdeploy.runtime.reference import rebuild_reference
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
) -> Eval:
    """Compare the accuracy of the artifact and of the FP32 reference on the same samples, and store the result.

    Args:
        artifact: the artifact, which runs here.
        data: DATA of the command line; None is the recipe's.
        progress: gets the steps and warnings.
        limit: the number of samples to stop after.
        reference: a file with the reference's answers (see `save_reference`); None runs the reference here.
        at_threshold: also compare what both sides find with scores of at least this.

    Raises:
        UsageError: no data is named, on the command line or in the recipe.
        DataError: the data has no labels of this task or is damaged, or the model's outputs are not of this task.
        SourceError: the reference cannot be loaded here.
        MeasureError: the saved reference is of another model or of other samples.
    """
    refuse_decoder(artifact, "eval")
    manifest = artifact.manifest
    task, dataset = open_labelled(artifact, data)
    first: Side
    with ExitStack() as stack:
        if reference is not None:
            first = recorded = stack.enter_context(RecordedReference(reference))
            recorded.check_about(manifest, dataset)
            name = recorded.about.name
        deployed = stack.enter_context(open_session(artifact, None, progress))
        if reference is None:
            with progress.step(f"Load the reference {manifest.model.spec}"):
                session = stack.enter_context(rebuild_reference(artifact, None))
            first, name = RunningSide(session, task, manifest, "normalized"), session.name
        sides = (first, RunningSide(deployed, task, manifest, manifest.recipe.target.input))
        answered = answer_all(sides, task, dataset, manifest, limit, progress)
        outcomes = answered.outcomes
        if reference is not None and (note := recorded.note()):
            progress.warn(note)
    with progress.step("Compare both sides"):
        distinct = count_once(outcomes)
        counted = accuracy.pair_outcomes(task, distinct)
        folders = dataset.classes if dataset.order == "alphabet" and dataset.classes else ()
        names = folders or manifest.labels
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
    raw, (flipped, images) = pack(counted), describe_flips(answered, task, names)
    pictures = draw_thumbnails(images, manifest.preprocess)
    evaluation = replace(
        evaluation,
        provenance=describe_provenance(manifest, deployed.threads),
        reference=name,
        data=dataset.spec,
        data_digest=dataset.digest,
        skipped=len(dataset.skipped),
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
    artifact: Artifact, data: str | None, out: Path, progress: Progress, *, limit: int | None = None
) -> About:
    """Run the FP32 reference of an artifact or bundle, and save its answers for machines without PyTorch.

    Raises:
        UsageError, DataError, SourceError: see `evaluate`.
        ArtifactError: `out` cannot be written.
    """
    manifest = artifact.manifest
    task, dataset = open_labelled(artifact, data)
    with progress.step(f"Load the reference {manifest.model.spec}"):
        session = rebuild_reference(artifact, None)
    with session:
        side = RunningSide(session, task, manifest, "normalized")
        size = batch_size(manifest)
        try:
            with atomic_file(out) as temporary, temporary.open("wb") as file:
                recorder = Recorder(file)
                with progress.step(f"Answer {dataset.spec}", min(len(dataset), limit or len(dataset))) as advance:
                    for images, labels, _, further in named_batches(dataset, size, limit=limit):
                        recorder.add(images, labels, side.answer(images, labels, size, further))
                        advance(len(labels))
                return recorder.close(session.name, manifest, dataset, side.values())
        except OSError as error:
            raise ArtifactError(f"{out} cannot be written: {error.strerror}", fix="Choose another file.") from None


def open_labelled(artifact: Artifact, data: str | None) -> tuple[Task, Dataset]:
    """Return the task of an artifact, and the labelled data."""
    manifest = artifact.manifest
    spec = data or manifest.recipe.data.evaluation
    task = tasks.find(manifest.recipe.task)
    if spec is None:
        raise UsageError(
            "there is no data to evaluate on",
            fix=f"Give --data DATA with labels as {task.data} (see docs/tasks.md)."
            if task.needs_labels
            else "Give --data DATA, a folder of images.",
        )
    classes = task.count_classes({output.name: output.shape for output in manifest.outputs})
    labels = manifest.labels if task.named_classes and classes in (None, len(manifest.labels or ())) else None
    dataset = open_dataset(
        spec,
        manifest.preprocess,
        labels=labels,
        need_labels=task.needs_labels,
        split="evaluation",
        form=task.data,
        classes=classes if task.named_classes else None,
        inputs=[describe_input(spec) for spec in open_inputs(manifest)],
        need_inputs=True,
    )
    return task, dataset
