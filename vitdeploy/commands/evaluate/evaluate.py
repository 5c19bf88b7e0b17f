"""`vitdeploy eval`: accuracy of an artifact and of its FP32 reference on the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from vitdeploy import tasks
from vitdeploy.artifact import Artifact, Manifest, atomic_file
from vitdeploy.artifact.layout import SAMPLES
from vitdeploy.commands.evaluate.recorded_reference import About, RecordedReference, Recorder
from vitdeploy.data.dataset import Dataset, batches, digest_image
from vitdeploy.data.labels import Label
from vitdeploy.data.opening import open_dataset
from vitdeploy.data.preprocess import to_input
from vitdeploy.errors import ArtifactError, DataError, UsageError
from vitdeploy.evidence import Eval
from vitdeploy.frozen import replace
from vitdeploy.measure import accuracy
from vitdeploy.measure.samples import Outcomes, count_once, pack
from vitdeploy.progress import Progress
from vitdeploy.recipe import InputForm
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.runtime.provenance import describe_provenance
from vitdeploy.runtime.reference import rebuild_reference
from vitdeploy.session import Array, Session
from vitdeploy.tasks import PerSample, Task
from vitdeploy.verdict import explain_calibrated

_TURN_BYTES = 8 << 20  # 55 images of 3 x 224 x 224; a limit in bytes bounds memory for any image size
_EVAL_BATCH = 1  # for a range of batch sizes: edge devices run one image at a time

LabelledBatch = tuple[Array, list[Label]]


class Side(Protocol):
    """One of the two compared models. It runs here, or its answers were recorded on another machine."""

    finite: list[Array]

    def answer(self, images: Array, labels: Sequence[Label], size: int) -> PerSample:
        """Answer a batch of uint8 images; `size` is the batch size that the artifact runs."""

    def values(self) -> tasks.Values:
        """Return the statistics of all answered samples."""


def evaluate(
    artifact: Artifact,
    data: str | None,
    progress: Progress,
    *,
    limit: int | None = None,
    reference: Path | None = None,
) -> Eval:
    """Compare the accuracy of the artifact and of the FP32 reference on the same samples, and store the result.

    Args:
        artifact: the artifact, which runs here.
        data: DATA of the command line; None is the recipe's.
        progress: gets the steps and warnings.
        limit: the number of samples to stop after.
        reference: a file with the reference's answers (see `save_reference`); None runs the reference here.

    Raises:
        UsageError: no data is named, on the command line or in the recipe.
        DataError: the data has no labels of this task or is damaged, or the model's outputs are not of this task.
        SourceError: the reference cannot be loaded here.
        MeasureError: the saved reference is of another model or of other samples.
    """
    manifest = artifact.manifest
    task, dataset = _open_labelled(artifact, data)
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
            first, name = _RunningSide(session, task, manifest, "normalized"), session.name
        sides = (first, _RunningSide(deployed, task, manifest, manifest.recipe.target.input))
        outcomes = _run_both(sides, task, dataset, manifest, limit, progress)
        if reference is not None and (note := recorded.note()):
            progress.warn(note)
    with progress.step("Compare both sides"):
        distinct = count_once(outcomes)
        counted = accuracy.pair_outcomes(task, distinct)
        folders = dataset.classes if dataset.order == "alphabet" and dataset.classes else ()
        evaluation = accuracy.compare_outcomes(task, counted, folders or manifest.labels)
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
    raw = pack(counted)
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
    )
    return artifact.write_evidence(evaluation, {SAMPLES: raw})


def save_reference(
    artifact: Artifact, data: str | None, out: Path, progress: Progress, *, limit: int | None = None
) -> About:
    """Run the FP32 reference of an artifact or bundle, and save its answers for machines without PyTorch.

    Raises:
        UsageError, DataError, SourceError: see `evaluate`.
        ArtifactError: `out` cannot be written.
    """
    manifest = artifact.manifest
    task, dataset = _open_labelled(artifact, data)
    with progress.step(f"Load the reference {manifest.model.spec}"):
        session = rebuild_reference(artifact, None)
    with session:
        side = _RunningSide(session, task, manifest, "normalized")
        size = _batch_size(manifest)
        try:
            with atomic_file(out) as temporary, temporary.open("wb") as file:
                recorder = Recorder(file)
                with progress.step(f"Answer {dataset.spec}", min(len(dataset), limit or len(dataset))) as advance:
                    for images, labels in batches(dataset, size, limit=limit):
                        recorder.add(images, labels, side.answer(images, labels, size))
                        advance(len(labels))
                return recorder.close(session.name, manifest, dataset, side.values())
        except OSError as error:
            raise ArtifactError(f"{out} cannot be written: {error.strerror}", fix="Choose another file.") from None


def _open_labelled(artifact: Artifact, data: str | None) -> tuple[Task, Dataset]:
    """Return the task of an artifact, and the labelled data."""
    manifest = artifact.manifest
    spec = data or manifest.recipe.data.evaluation
    task = tasks.find(manifest.recipe.task)
    if spec is None:
        raise UsageError(
            "there is no data to evaluate on", fix=f"Give --data DATA with labels as {task.data} (see docs/tasks.md)."
        )
    classes = task.count_classes({output.name: output.shape for output in manifest.outputs})
    labels = manifest.labels if task.named_classes and classes in (None, len(manifest.labels or ())) else None
    dataset = open_dataset(
        spec,
        manifest.preprocess,
        labels=labels,
        need_labels=True,
        split="evaluation",
        form=task.data,
        classes=classes if task.named_classes else None,
    )
    return task, dataset


def _batch_size(manifest: Manifest) -> int:
    batch = manifest.recipe.target.batch
    return batch.min if batch.static else _EVAL_BATCH


def _run_both(
    sides: tuple[Side, Side],
    task: Task,
    dataset: Dataset,
    manifest: Manifest,
    limit: int | None,
    progress: Progress,
) -> Outcomes:
    """Let both sides answer every sample, and return the outcome of each."""
    size = _batch_size(manifest)
    agreement: list[Array] = []
    digests: list[int] = []
    with progress.step(f"Evaluate on {dataset.spec}", min(len(dataset), limit or len(dataset))) as advance:
        for turn in _turns(batches(dataset, size, limit=limit)):
            first, second = ([side.answer(images, labels, size) for images, labels in turn] for side in sides)
            agreement += [
                task.compare_answers(a.answers, b.answers, (a.finite, b.finite))
                for a, b in zip(first, second, strict=True)
            ]
            digests += [digest_image(image) for images, _ in turn for image in images]
            advance(sum(len(labels) for _, labels in turn))
    return Outcomes(
        digest=np.array(digests, np.uint64),
        reference=sides[0].values(),
        deployed=sides[1].values(),
        agreement=np.concatenate(agreement),
        finite=np.concatenate(sides[1].finite),
    )


def _turns(stream: Iterable[LabelledBatch]) -> Iterator[list[LabelledBatch]]:
    """Group batches into turns: one side answers all batches of a turn, then the other side does.

    After a run, an engine's threads spin for some milliseconds (25 ms in ONNX Runtime). If the sides took turns after
    every image, each would compete with the spinning threads of the other and be ten times slower.
    """
    turn: list[LabelledBatch] = []
    size = 0
    for batch in stream:
        turn.append(batch)
        size += batch[0].nbytes
        if size >= _TURN_BYTES:
            yield turn
            turn, size = [], 0
    if turn:
        yield turn


class _RunningSide:
    """A model that runs here, and the statistics of its answers so far."""

    def __init__(self, session: Session, task: Task, manifest: Manifest, form: InputForm) -> None:
        self._session = session
        self._task = task
        self._input = manifest.inputs[0].name
        self._feed = partial(to_input, preprocess=manifest.preprocess, form=form)
        self._values: list[tasks.Values] = []
        self.finite: list[Array] = []

    def answer(self, images: Array, labels: Sequence[Label], size: int) -> PerSample:
        """Answer a batch of uint8 images. A last, smaller batch is padded, and the answers to the padding are cut."""
        count = len(images)
        if count < size:
            images = np.concatenate([images, np.repeat(images[-1:], size - count, axis=0)])
        batched = tasks.find_batched(self._session.run({self._input: self._feed(images)}), len(images))
        outputs = self._task.select_outputs(batched)
        statistics = self._task.statistics({name: value[:count] for name, value in outputs.items()}, labels)
        self.finite.append(statistics.finite)
        self._values.append(statistics.values)
        return statistics

    def values(self) -> tasks.Values:
        """Return the statistics of all samples."""
        if not self._values:
            raise DataError("no sample could be read", fix="Check the data folder.")
        return {name: np.concatenate([values[name] for values in self._values]) for name in self._values[0]}
