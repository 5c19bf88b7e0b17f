"""Compile the variants of a bundle on the device, and make the chosen one the artifact."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from vitdeploy.artifact import Artifact, Manifest, Trial, Variant
from vitdeploy.artifact.layout import EXAMPLE, GRAPH
from vitdeploy.artifact.variants import place_variant
from vitdeploy.frozen import replace
from vitdeploy.pipeline.build_store import BuildStore
from vitdeploy.pipeline.device_choice import choose_variant
from vitdeploy.pipeline.examples import load_examples
from vitdeploy.pipeline.finish import announce, describe_claim, seal_compiled
from vitdeploy.pipeline.variant_builder import WORK, BuiltVariant, VariantBuilder
from vitdeploy.progress import Progress, Silent
from vitdeploy.runtime.artifact_session import read_bundle
from vitdeploy.targets import Compiled, Target


def compile_variants(
    source: Artifact, manifest: Manifest, target: Target, folder: Path, progress: Progress
) -> tuple[Artifact, list[str]]:
    """Build and measure the variants of a bundle, and seal the folder with the chosen one. Return it, and notes.

    A compile that is killed continues with the variants that are not built yet.

    Args:
        source: the bundle that was brought here.
        manifest: of the artifact to be.
        target: the target with its options.
        folder: has a copy of the bundle's files, and becomes the artifact.
        progress: gets the steps and warnings.

    Raises:
        CompileError: no variant could be compiled.
        DataError: the judge data cannot be used.
    """
    announce(read_bundle(folder, manifest), manifest, target, progress)  # names known faults before the builds
    examples = load_examples(folder / EXAMPLE, manifest.preprocess, manifest.recipe.target.input)
    store = BuildStore() if target.runs_on == "cuda" else None  # on a CPU a build takes seconds
    builder = VariantBuilder(source, manifest, target, folder, examples, progress, store=store)
    forms = [variant for variant in manifest.variants if variant.form]
    choice = choose_variant(builder, _order(manifest, target), forms, progress)
    claim = choice.built.claim
    compiled = _place(choice.built, folder)
    bundle = read_bundle(folder, choice.built.manifest)
    trials = (*choice.trials, *_list_left_out(manifest))
    chosen = replace(choice.built.manifest, trials=trials, doubts=(*manifest.doubts, *choice.doubts))
    chosen, _ = announce(bundle, chosen, target, Silent())
    shutil.rmtree(folder / WORK, ignore_errors=True)
    artifact, doubts = seal_compiled(bundle, chosen, target, compiled, claim)
    builder.finish()
    return artifact, [*doubts, *choice.notes, *([] if claim is None else describe_claim(claim, target))]


def _list_left_out(manifest: Manifest) -> list[Trial]:
    """Return the trials of the precisions that were not sent, such as those over the budget: they say why."""
    sent = {variant.precision for variant in manifest.variants}
    return [trial for trial in manifest.trials if trial.precision not in sent]


def _order(manifest: Manifest, target: Target) -> list[Variant]:
    """Return the plain variants, the target's default first."""
    plain = [variant for variant in manifest.variants if not variant.form]
    return sorted(plain, key=lambda variant: variant.precision != target.default_precision)


def _place(built: BuiltVariant, folder: Path) -> Compiled:
    """Make a variant the bundle's own graph, with what was compiled beside it. Return the compiled model there."""
    place_variant(folder, built.variant)
    compiled = built.compiled
    if compiled.folder == folder:  # the engine runs the graph itself
        return dataclasses.replace(compiled, runs=GRAPH)
    for path in compiled.folder.iterdir():
        shutil.move(path, folder / path.name)
    return dataclasses.replace(compiled, folder=folder)
