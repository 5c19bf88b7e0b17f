"""An artifact's float32 graph once more, made from what its manifest says."""

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
    """Raise and fold the model as it was, with calibration images if `calibration` names them.

    Args:
        manifest: of the artifact.
        work: an empty folder.
        progress: told about the steps.
        calibration: DATA of the command line.
        cache: where its export may have been kept.

    Raises:
        SourceError: the model cannot be had here.
        MeasureError: it is another model now.
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
