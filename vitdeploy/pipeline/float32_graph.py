"""An artifact's float32 graph once more, made from what its manifest says."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import targets
from vitdeploy.artifact import Manifest
from vitdeploy.errors import SourceError
from vitdeploy.pipeline.prepare import Prepared, prepare
from vitdeploy.progress import Progress
from vitdeploy.runtime.reference import require_same_weights


def rebuild(manifest: Manifest, work: Path, progress: Progress, *, calibration: str | None = None) -> Prepared:
    """Export, raise and fold the model as it was; with calibration images, if `calibration` names them.

    Raises:
        SourceError: the model cannot be had here.
        MeasureError: it is another model now.
    """
    recipe = manifest.recipe
    if calibration is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"calibration": calibration})})
    target, reduced = targets.find(recipe.target), recipe.precision.kind != "fp32"
    try:
        prepared = prepare(recipe, target, work, progress, calibrated=calibration is not None, half=reduced)
    except ImportError as error:
        raise SourceError(f"{error.name} is not installed", fix="pip install 'vitdeploy[export]'.") from None
    require_same_weights(manifest, prepared.model.digest)
    return prepared
