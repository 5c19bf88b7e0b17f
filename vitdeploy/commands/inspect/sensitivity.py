"""`vitdeploy inspect --sensitivity`: the price of quantizing each linear alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vitdeploy import precision, targets, tasks
from vitdeploy.artifact import Artifact
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.errors import DataError, QuantizeError
from vitdeploy.evidence import Sensitivity
from vitdeploy.frozen import replace
from vitdeploy.pipeline.float32_graph import rebuild_graph
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.precision import LinearPrecision
from vitdeploy.progress import Progress
from vitdeploy.quantize.sensitivity import Agreement
from vitdeploy.recipe import PrecisionSpec, TaskSpec
from vitdeploy.session import Array

IMAGES = 8
"""Noise is in every image, so few are enough: over draws of 8 the figure of a linear has a standard deviation of 1.2 dB
in the median and 1.8 dB at most (Fashion-MNIST ViT, int8)."""

_OTHERWISE = "int8"
"""The precision to measure where the artifact's own quantizes no linear."""


def measure_sensitivity(
    artifact: Artifact,
    calibration: str | None,
    progress: Progress,
    *,
    images: int = IMAGES,
    cache: GraphCache | None = None,
) -> Sensitivity:
    """Measure what each linear costs when it alone is quantized; stored beside the artifact.

    The precision is the artifact's, or int8 as its target writes it where the artifact's quantizes no linear.

    Args:
        artifact: or bundle.
        calibration: DATA; None takes what the recipe names.
        progress: told about the steps.
        images: how many are looked at.
        cache: where the float32 graph may have been kept.

    Raises:
        QuantizeError: there are no calibration images.
        SourceError: the model cannot be had here.
        MeasureError: it is another model now.
    """
    manifest = artifact.manifest
    data = calibration or manifest.recipe.data.calibration
    if data is None:
        raise QuantizeError(
            "sensitivity is measured on calibration images, and the recipe names none",
            fix="Give --calibration DATA (a folder of images is enough).",
        )
    chosen = _linear_precision(manifest.recipe.precision, manifest.target.precision)
    dialect = targets.find(manifest.recipe.target).dialect()
    with tempfile.TemporaryDirectory(prefix="vitdeploy-sensitivity-") as work:
        prepared = rebuild_graph(manifest, Path(work), progress, calibration=data, cache=cache)
        calibrated = CalibratedGraph(prepared.graph, prepared.structure, prepared.calibration, progress)
        agreement = _agreement(manifest.recipe.task, prepared.examples.outputs)
        layers, choice = chosen.measure_sensitivity(calibrated, dialect, images, agreement)
        looked_at = min(images, calibrated.require_images().images)
    return artifact.write_evidence(
        Sensitivity(precision=chosen.name, layers=layers, images=looked_at, calibration=data, choice=str(choice))
    )


def _linear_precision(spec: PrecisionSpec, name: str) -> LinearPrecision:
    """Return the precision called `name` with the recipe's options; another one if it quantizes no linear."""
    kind = name if issubclass(precision.kind_of(name), LinearPrecision) else _OTHERWISE
    chosen = precision.find(replace(spec, kind=kind))
    assert isinstance(chosen, LinearPrecision)
    return chosen


def _agreement(spec: TaskSpec, outputs: tuple[dict[str, Array], ...]) -> Agreement | None:
    """Return the agreement of the task; None where the model's outputs are not of this task."""
    task = tasks.find(spec)
    try:
        task.read_answers(outputs[0])
    except DataError:
        return None
    return task.compare_outputs
