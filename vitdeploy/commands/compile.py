"""Finish a bundle on the device that it is for."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy import targets
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import is_in_bundle
from vitdeploy.errors import QuantizeError
from vitdeploy.pipeline.finish import Exported, finish, summary
from vitdeploy.progress import Progress
from vitdeploy.recipe import STATIC


def compile_bundle(
    source: Path,
    out: Path | None,
    progress: Progress,
    *,
    force: bool = False,
    options: Mapping[str, object] | None = None,
) -> Exported:
    """Finish a bundle on the device it is for; in its own place unless `out` names another.

    `options` are the target's own and win over the recipe's: how much memory a build may take is known only here.

    Raises:
        TargetUnavailable: the backend or its device is not here either.
        QuantizeError: the bundle is called INT8 or FP8 and was never calibrated.
        RecipeError: an option does not fit.
    """
    started = time.monotonic()
    bundle = artifacts.load(source)
    recipe = recipes.with_target_options(bundle.manifest.recipe, options or {})
    target = targets.find(recipe.target)
    _check_calibrated(bundle)
    target.require()
    in_place = out is None or out.absolute() == source.absolute()
    with artifacts.atomic_folder(out or source, force=force or in_place) as folder:
        for entry in bundle.manifest.files:
            if is_in_bundle(entry.path):
                (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / entry.path, folder / entry.path)
        again = {"stage": "bundle", "runs": None, "recipe": recipe, "recipe_digest": recipe.digest}
        manifest = bundle.manifest.model_copy(update=again)
        manifest, notes = finish(folder, manifest, target, progress, out or source)
    return summary(out or source, manifest, time.monotonic() - started, notes)


def _check_calibrated(bundle: Artifact) -> None:
    manifest = bundle.manifest
    if manifest.target.precision in STATIC and not manifest.quantized.get("calibration"):
        raise QuantizeError(
            f"{bundle.path} is called {manifest.target.precision} and was never calibrated",
            fix="Export it again with --calibration DATA: ranges are never invented.",
        )
