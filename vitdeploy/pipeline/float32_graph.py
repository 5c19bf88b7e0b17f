"""The float32 graph of an artifact, rebuilt from its manifest."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import targets
from vitdeploy.artifact import Manifest
from vitdeploy.frozen import replace
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.prepare import Options, Prepared, prepare
from vitdeploy.precision import kind_of
from vitdeploy.progress import Progress
from vitdeploy.runtime.reference import missing_library, require_same_weights


def rebuild_graph(
    manifest: Manifest, work: Path, progress: Progress, *, calibration: str | None = None, cache: GraphCache | None
) -> Prepared:
    """Load, raise and fold the artifact's model again, with calibration images if `calibration` names them.

    Args:
        manifest: the manifest of the artifact.
        work: an empty folder.
        progress: gets the steps.
        calibration: DATA of the command line.
        cache: the cache of exported graphs, which may have the graph.

    Raises:
        SourceError: the model is not available here.
        MeasureError: its weights have changed since the export.
    """
    recipe, dialect = manifest.recipe, targets.find(manifest.recipe.target).dialect()
    if calibration is not None:
        recipe = replace(recipe, data=replace(recipe.data, calibration=calibration))
    half = not kind_of(manifest.target.precision).is_float32
    try:
        options = Options(calibrated=calibration is not None, half=half, cache=cache)
        prepared = prepare(recipe, dialect, work, progress, options)
    except ImportError as error:
        raise missing_library(error) from None
    require_same_weights(manifest, prepared.facts.model.digest)
    return prepared
