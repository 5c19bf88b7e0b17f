"""`vitdeploy compile`: compile a bundle on the device that it is for."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import precision, targets
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact, Manifest, Trial
from vitdeploy.artifact.layout import EXAMPLE, is_in_bundle
from vitdeploy.artifact.variants import find_variant, place_variant, select_variant
from vitdeploy.errors import QuantizeError, UsageError
from vitdeploy.frozen import replace
from vitdeploy.pipeline.compile_variants import compile_variants
from vitdeploy.pipeline.examples import load_examples
from vitdeploy.pipeline.finish import finish
from vitdeploy.pipeline.summary import ExportResult, summarize_export
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import read_bundle


def compile_bundle(
    bundle: Artifact,
    out: Path | None,
    progress: Progress,
    *,
    force: bool = False,
    options: Mapping[str, object] | None = None,
    variant: str | None = None,
    max_drop_pp: float | None = None,
    seconds: float | None = None,
) -> ExportResult:
    """Compile a bundle on this device. The artifact replaces the bundle unless `out` names another folder.

    Of a bundle with variants, each is built and measured, and the fastest within the accuracy budget is kept.

    Args:
        bundle: the bundle; an artifact is compiled again.
        out: the folder to write; None replaces the bundle.
        progress: gets the steps and warnings.
        force: replace an artifact at `out`.
        options: options of the target, which override the recipe's. Only the device knows how much memory a build may
            use.
        variant: the name of the variant to compile; None chooses.
        max_drop_pp: the most accuracy that a variant may lose, in percentage points; None: as the recipe says.
        seconds: the time to measure for the comparison of variants; None: as the recipe says.

    Raises:
        TargetUnavailable: this machine does not have the backend or its device.
        QuantizeError: the bundle's precision needs calibration, and it was never calibrated.
        RecipeError: an option does not fit the target.
        UsageError: there is no such variant, or --seconds is given and there are no variants to compare.
    """
    started = time.monotonic()
    source = bundle.path
    recipe = recipes.with_target_options(bundle.manifest.recipe, options or {})
    if max_drop_pp is not None:
        recipe = replace(recipe, precision=replace(recipe.precision, max_drop_pp=max_drop_pp))
    if seconds is not None:
        _check_variants(bundle, variant)
        recipe = replace(recipe, precision=replace(recipe.precision, seconds=seconds))
    target = targets.find(recipe.target)
    manifest = replace(
        bundle.manifest, stage="bundle", runs=None, recipe=recipe, recipe_digest=recipe.digest,
        device_parity=None, doubts=bundle.manifest.export.doubts,
    )  # fmt: skip
    if variant is not None:
        manifest = select_variant(manifest, variant)
        if (level := find_variant(manifest, variant).optimization_level) is not None:
            recipe = recipes.with_target_options(recipe, {"optimization_level": level})
            manifest = replace(manifest, recipe=recipe, recipe_digest=recipe.digest)
            target = targets.find(recipe.target)
    _check_calibrated(bundle.path, manifest)
    target.require_to_compile()
    in_place = out is None or out.absolute() == source.absolute()
    replaces = bundle.digest if in_place else None
    with artifacts.atomic_folder(out or source, force=force or in_place, replaces=replaces) as folder:
        for entry in bundle.manifest.files:
            if is_in_bundle(entry.path):
                (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / entry.path, folder / entry.path)
        bundle.check_unchanged()  # the copies are those that were hashed
        cannot = target.cannot_run()
        if manifest.variants and variant is None and cannot is None:
            artifact, notes = compile_variants(bundle, manifest, target, folder, progress)
        else:
            notes = []
            if manifest.variants:
                selected = find_variant(manifest, manifest.variant)
                place_variant(folder, selected)
                trial = Trial(precision=selected.precision, form=selected.form, kept=True)
                manifest = replace(manifest, trials=(trial,))
                reason = (
                    "it was named"
                    if cannot is None or variant is not None
                    else f"nothing can be timed here: {cannot.why}"
                )
                notes.append(f"compiled the variant {manifest.variant}: {reason}")
            artifact, more = finish(
                read_bundle(folder, manifest),
                manifest,
                target,
                progress,
                out or source,
                examples=load_examples(folder / EXAMPLE, manifest.preprocess, recipe.target.input),
                received=True,
            )
            notes += more
    summary = summarize_export(out or source, artifact.manifest, time.monotonic() - started, notes)
    return ExportResult(dataclasses.replace(artifact, path=out or source), summary)


def _check_variants(bundle: Artifact, variant: str | None) -> None:
    if variant is not None or sum(not one.form for one in bundle.manifest.variants) < 2:
        why = f"{bundle.path} has none to compare" if variant is None else "--variant names one"
        raise UsageError(f"--seconds is for the comparison of variants, and {why}", fix="Leave out --seconds.")


def _check_calibrated(path: Path, manifest: Manifest) -> None:
    name, record = manifest.target.precision, manifest.quantized
    if precision.kind_of(name).needs_images and (record is None or record.calibration is None):
        raise QuantizeError(
            f"the precision of {path} is {name}, but it was never calibrated",
            fix="Export it again with --calibration DATA.",
        )
