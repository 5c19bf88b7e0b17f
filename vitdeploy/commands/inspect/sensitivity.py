"""`vitdeploy inspect --sensitivity`: the loss from quantizing each linear alone."""

from __future__ import annotations

import dataclasses

from vitdeploy import precision, targets, tasks
from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.errors import DataError, QuantizeError
from vitdeploy.evidence import Sensitivity
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import Dialect
from vitdeploy.pipeline.float32_graph import rebuild_graph
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.precision import LinearPrecision
from vitdeploy.progress import Progress
from vitdeploy.quantize.sensitivity import Agreement, sum_by_region
from vitdeploy.recipe import PrecisionSpec, TaskSpec
from vitdeploy.runtime.provenance import describe_provenance
from vitdeploy.session import Array

MEASURED_IMAGES = 8
"""Every image has noise, so few are enough: between draws of 8, the result of a linear has a standard deviation of
1.2 dB in the median and 1.8 dB at most (Fashion-MNIST ViT, int8)."""

_FALLBACK = "int8"
"""The precision to measure if the artifact's own quantizes no linear."""


def measure_sensitivity(
    artifact: Artifact,
    calibration: str | None,
    progress: Progress,
    *,
    images: int = MEASURED_IMAGES,
    cache: GraphCache | None = None,
) -> Sensitivity:
    """Measure the loss from quantizing each linear alone, and store the result beside the artifact.

    The precision is the artifact's; or int8 in its target's form, if the artifact's quantizes no linear.

    Args:
        artifact: an artifact or bundle.
        calibration: DATA; None is the recipe's.
        progress: gets the steps and warnings.
        images: the number of images.
        cache: the cache of exported graphs, which may have the float32 graph.

    Raises:
        QuantizeError: there are no calibration images, or the model is quantized already.
        SourceError: the model cannot be loaded here.
        MeasureError: its weights have changed since the export.
    """
    manifest = artifact.manifest
    if manifest.model.precision == "quantized":
        raise QuantizeError(
            f"{manifest.model.spec} is quantized already, so its linears cannot be quantized one by one",
            fix="Export the float model.",
        )
    data = calibration or manifest.recipe.data.calibration
    if data is None:
        raise QuantizeError(
            "sensitivity needs calibration images, and the recipe names none",
            fix="Give --calibration DATA, such as a folder of images.",
        )
    linear_precision = _find_linear_precision(manifest.recipe.precision, manifest.target.precision)
    dialect = _find_dialect(manifest)
    with scratch_folder("sensitivity") as work:
        prepared = rebuild_graph(artifact, work, progress, calibration=data, cache=cache)
        calibrated = CalibratedGraph(prepared.graph, prepared.structure, prepared.calibration, progress)
        agreement = _find_agreement(manifest.recipe.task, prepared.facts.examples.outputs)
        layers, choice = linear_precision.measure_sensitivity(calibrated, dialect, images, agreement)
        count = min(images, calibrated.require_images().images)
    name = linear_precision.name
    return artifact.write_evidence(
        Sensitivity(
            precision=name,
            layers=layers,
            regions=sum_by_region(layers),
            images=count,
            calibration=data,
            choice=str(choice),
            provenance=describe_provenance(manifest, None),
        )
    )


def _find_dialect(manifest: Manifest) -> Dialect:
    """Return the form of the artifact's graph: for the machine that it was compiled on, with weights of its bits."""
    dialect = targets.find(manifest.recipe.target).dialect(manifest.target.host)
    bits = None if manifest.quantized is None else manifest.quantized.weight_bits
    return dialect if bits is None else dataclasses.replace(dialect, int8_sums_saturate=bits == 7)


def _find_linear_precision(spec: PrecisionSpec, name: str) -> LinearPrecision:
    """Return the precision `name` with the recipe's options; the fallback if it quantizes no linear."""
    kind = name if issubclass(precision.kind_of(name), LinearPrecision) else _FALLBACK
    linear_precision = precision.find(
        replace(spec, kind=kind, quantizer=None)
    )  # NNCF does not quantize linears one by one
    assert isinstance(linear_precision, LinearPrecision)
    return linear_precision


def _find_agreement(spec: TaskSpec, outputs: tuple[dict[str, Array], ...]) -> Agreement | None:
    """Return the function that compares outputs for this task; None if the model's outputs are not of this task."""
    task = tasks.find(spec)
    try:
        task.read_answers(outputs[0])
    except DataError:
        return None
    return task.compare_outputs
