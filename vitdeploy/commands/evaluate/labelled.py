"""The labelled data of an evaluation."""

from __future__ import annotations

from vitdeploy import tasks
from vitdeploy.artifact import Artifact
from vitdeploy.data.dataset import Dataset
from vitdeploy.data.opening import open_dataset
from vitdeploy.errors import UsageError
from vitdeploy.runtime.artifact_session import describe_input, open_inputs
from vitdeploy.tasks import Task


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
