"""What each linear of an artifact's model costs when it alone is quantized."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import targets, tasks
from vitdeploy.calibrate.quantizer import QUANTIZED, Quantizer
from vitdeploy.errors import DataError, QuantizeError
from vitdeploy.evidence import Sensitivity
from vitdeploy.pipeline.float32_graph import rebuild
from vitdeploy.progress import Progress
from vitdeploy.quantize.sensitivity import Agreement
from vitdeploy.recipe import PrecisionSpec, TaskSpec
from vitdeploy.session import Array

IMAGES = 8
"""Noise is in every image, so few are enough: over draws of 8 the figure of a linear has a standard deviation of 1.2 dB
in the median and 1.8 dB at most (Fashion-MNIST ViT, int8)."""


def sensitivity(path: Path, calibration: str | None, progress: Progress, *, images: int = IMAGES) -> Sensitivity:
    """Measure it on calibration images; stored beside the artifact.

    The precision is the artifact's, or int8 as its target writes it where the artifact's quantizes no linear.

    Args:
        path: the artifact or bundle.
        calibration: DATA; None takes what the recipe names.
        progress: told about the steps.
        images: how many are looked at.

    Raises:
        QuantizeError: there are no calibration images.
        SourceError: the model cannot be had here.
        MeasureError: it is another model now.
    """
    artifact = artifacts.load(path)
    manifest = artifact.manifest
    spec = calibration or manifest.recipe.data.calibration
    if spec is None:
        raise QuantizeError(
            "sensitivity is measured on calibration images, and the recipe names none",
            fix="Give --calibration DATA (a folder of images is enough).",
        )
    kind = manifest.target.precision if manifest.target.precision in QUANTIZED else "int8"
    precision = PrecisionSpec.model_validate({**manifest.recipe.precision.model_dump(), "kind": kind})
    dialect = targets.find(manifest.recipe.target).dialect()
    with tempfile.TemporaryDirectory(prefix="vitdeploy-sensitivity-") as work:
        made = rebuild(manifest, Path(work), progress, calibration=spec)
        quantizer = Quantizer(made.graph, made.structure, dialect, made.calibration, progress)
        layers, choice = quantizer.sensitivity(
            precision, images, _agreement(manifest.recipe.task, made.examples.outputs)
        )
        assert made.calibration is not None
        used = min(images, made.calibration.images)
    found = Sensitivity(
        precision=kind, layers=layers, images=used, calibration=spec, choice=str(choice), manifest=artifact.digest
    )
    artifact.write_evidence(found)
    return found


def _agreement(spec: TaskSpec, outputs: tuple[dict[str, Array], ...]) -> Agreement | None:
    """The task's; None where the model's outputs are not of this task."""
    task = tasks.find(spec)
    try:
        task.answers(outputs[0])
    except DataError:
        return None
    return task.agreement
