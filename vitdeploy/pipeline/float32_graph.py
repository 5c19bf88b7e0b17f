"""The float32 graph of an artifact, rebuilt from its manifest."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import targets
from vitdeploy.artifact import Artifact
from vitdeploy.frozen import replace
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.prepare import Options, Prepared, prepare
from vitdeploy.precision import kind_of
from vitdeploy.progress import Progress
from vitdeploy.recipe import TokensSpec
from vitdeploy.runtime.reference import missing_library, rebuild_model


def rebuild_graph(
    artifact: Artifact, work: Path, progress: Progress, *, calibration: str | None = None, cache: GraphCache | None
) -> Prepared:
    """Load, raise and fold the artifact's model again, with calibration images if `calibration` names them.

    Args:
        artifact: the artifact.
        work: an empty folder.
        progress: gets the steps.
        calibration: DATA of the command line.
        cache: the cache of exported graphs, which may have the graph.

    Raises:
        SourceError, MeasureError: see `rebuild_model`.
    """
    manifest = artifact.manifest
    recipe, dialect = manifest.recipe, targets.find(manifest.recipe.target).dialect()
    if calibration is not None:
        recipe = replace(recipe, data=replace(recipe.data, calibration=calibration))
    half = not kind_of(manifest.target.precision).is_float32
    if recipe.tokens.searches:
        merged = {} if manifest.tokens is None else manifest.tokens.merged
        recipe = replace(recipe, tokens=TokensSpec(merge=merged))
    positions = None if manifest.tokens is None else manifest.tokens.dropped
    options = Options(calibrated=calibration is not None, half=half, cache=cache, positions=positions)
    try:
        return prepare(recipe, dialect, work, progress, options, lambda: rebuild_model(artifact))
    except ImportError as error:  # of ONNX, before the model is loaded
        raise missing_library(error) from None
