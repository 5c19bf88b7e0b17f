"""Compile, audit and seal an artifact, on the workstation or the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import environment
from vitdeploy.artifact import Artifact, Manifest, Parity, TargetRecord, Variant
from vitdeploy.artifact.layout import BLOCKS
from vitdeploy.artifact.variants import find_variant
from vitdeploy.errors import TargetUnavailable
from vitdeploy.evidence import Audit
from vitdeploy.frozen import replace
from vitdeploy.graph.parity import Example
from vitdeploy.pipeline.attempts import Chosen
from vitdeploy.pipeline.block_values import load_block_values
from vitdeploy.pipeline.claims import Claim, check_compiled
from vitdeploy.pipeline.compile_apart import compile_apart
from vitdeploy.pipeline.prepare import Facts
from vitdeploy.pipeline.usage import describe_usage
from vitdeploy.progress import Progress
from vitdeploy.recipe import Recipe
from vitdeploy.runtime.provenance import describe_provenance
from vitdeploy.sources import find_file
from vitdeploy.targets import Bundle, Compiled, Target, audit_bundle


def draft_manifest(
    recipe: Recipe,
    target: Target,
    facts: Facts,
    chosen: Chosen,
    parity: Parity | None,
    variants: tuple[Variant, ...] = (),
) -> Manifest:
    """Return the manifest of a bundle.

    Args:
        recipe: the recipe with all defaults filled in.
        target: the target with its options.
        facts: the facts about the prepared model.
        chosen: the chosen candidate, and the trials.
        parity: the comparison of the target-ready graph with the reference.
        variants: the graphs among which the device chooses, the candidate's included; empty for one graph.
    """
    recipe, candidate = replace(recipe, task=facts.task), chosen.candidate
    if facts.examples.dropped:
        recipe = replace(recipe, model=replace(recipe.model, outputs=tuple(facts.examples.outputs[0])))
    return Manifest(
        stage="bundle",
        model=facts.model,
        recipe=recipe,
        recipe_digest=recipe.digest,
        export=facts.export,
        graph_parity=parity,
        doubts=facts.export.doubts,
        passes=(*facts.passes, *candidate.passes),
        tokens=facts.tokens,
        quantized=candidate.record,
        placement=candidate.placement,
        trials=chosen.trials,
        target=TargetRecord(kind=target.name, device=target.device, precision=candidate.name),
        preprocess=facts.preprocess,
        pixels=facts.pixels,
        assumed=facts.assumed,
        metadata=facts.metadata,
        labels=facts.labels,
        inputs=candidate.inputs,
        outputs=candidate.outputs,
        variants=variants,
        variant=candidate.name if variants else "",
        versions=environment.library_versions(),
    )


def finish(
    bundle: Bundle,
    manifest: Manifest,
    target: Target,
    progress: Progress,
    out: Path,
    *,
    examples: Sequence[Example],
    here: bool = True,
    compiled: Compiled | None = None,
    received: bool = False,
) -> tuple[Artifact, list[str]]:
    """Compile and audit in the bundle's folder if the target can do that here, seal the folder, and store the audit.

    What was compiled is run before it is sealed, and compared with the reference.

    Args:
        bundle: the target-ready graph, in a folder with its sites and the stored example.
        manifest: the manifest of the bundle.
        target: the target with its options.
        progress: gets the steps.
        out: the final path of the folder, for the notes.
        examples: images with the reference's outputs.
        here: compile on this machine; False if another machine will do it.
        compiled: the compiled model in the bundle's folder, if it was compiled already.
        received: True if the bundle may come from anyone.

    Returns:
        The artifact or bundle, and notes for the user.

    Raises:
        TargetUnavailable: the target is not installed here, and is not one that is compiled on another device.
        CompileError: the backend refuses the graph, or its engine computes other numbers.
    """
    missing = target.unavailable() if here else None
    if missing is not None and not target.built_on_device:
        raise TargetUnavailable(f"{target.name}: {missing.why}", fix=missing.fix)
    manifest, planned = announce(bundle, manifest, target, progress)
    folder = bundle.graph.parent
    if not here:
        return artifacts.seal(folder, manifest), _doubts(planned)
    if missing is not None:
        note = f"this is a bundle, not an engine: {missing.why}. On the device run: vitdeploy compile {out}"
        artifact = artifacts.seal(folder, manifest)
        return artifact, [note, *_doubts(planned), *_rehearse(artifact, bundle, target, progress)]
    if compiled is None:
        with progress.step(f"Compile and audit with {target.name}"):
            compiled = compile_received(bundle, manifest, target, progress, received=received)
    claim, notes = _check(bundle, compiled, target, examples, manifest, progress)
    artifact, doubts = seal_compiled(bundle, manifest, target, compiled, claim)
    return artifact, [*doubts, *notes]


def announce(bundle: Bundle, manifest: Manifest, target: Target, progress: Progress) -> tuple[Manifest, Audit]:
    """Name the known faults that fit a graph before it is built, which can take minutes.

    Returns:
        The manifest with what the graph alone says, and the audit of the graph.
    """
    manifest = replace(manifest, usage=describe_usage(manifest, target))
    faults = target.known_faults(bundle.structure, takes_batch_one=manifest.recipe.target.batch.min == 1)
    for fault in faults:
        progress.warn(f"reported by others: {fault}")
    planned = audit_bundle(target.name, bundle, "")
    return replace(manifest, known_faults=faults, quantized_share=planned.quantized), planned


def seal_compiled(
    bundle: Bundle, manifest: Manifest, target: Target, compiled: Compiled, claim: Claim | None
) -> tuple[Artifact, list[str]]:
    """Seal the folder of a bundle that was compiled in it, and store the audit. Return the artifact, and doubts.

    Args:
        bundle: in the folder of the artifact.
        manifest: of the bundle; see `announce`.
        target: the target with its options.
        compiled: the compiled model, in the same folder.
        claim: the comparison of it with the reference; None if it cannot run here.
    """
    audit = compiled.audit or target.audit(bundle, compiled)
    record = replace(manifest.target, backend=compiled.backend, host=environment.host())
    doubts = tuple(dict.fromkeys((*manifest.doubts, *(claim.doubts if claim is not None else ()))))
    manifest = replace(
        manifest, stage="artifact", target=record, runs=compiled.runs, doubts=doubts,
        device_parity=None if claim is None else claim.parity, quantized_share=audit.quantized,
    )  # fmt: skip
    artifact = artifacts.seal(bundle.graph.parent, manifest)
    audit = replace(
        audit, doubts=(*doubts, *audit.doubts), provenance=describe_provenance(manifest, audit.threads)
    )  # fmt: skip
    artifact.write_evidence(audit)
    return artifact, [f"doubt: {doubt}" for doubt in audit.doubts]


def _check(
    bundle: Bundle,
    compiled: Compiled,
    target: Target,
    examples: Sequence[Example],
    manifest: Manifest,
    progress: Progress,
) -> tuple[Claim | None, list[str]]:
    """Run what was compiled and compare it with the reference. Without a device that runs it, return why not."""
    cannot = target.cannot_run()
    if cannot is not None:
        return None, [f"it was not run, so its numbers are unknown: {cannot.why}"]
    is_form = bool(manifest.variant and find_variant(manifest, manifest.variant).form)  # it computes in another way
    values = None if is_form else load_block_values(bundle.graph.parent / BLOCKS)
    with progress.step("Run it, and compare it with the reference"):
        claim = check_compiled(
            bundle, compiled, target, examples, manifest.graph_parity,
            quantized=manifest.model.precision == "quantized", values=values,
        )  # fmt: skip
    return claim, describe_claim(claim, target)


def describe_claim(claim: Claim, target: Target) -> list[str]:
    """Return a note with the figures of a comparison that was made on the device."""
    figures = f"cosine {claim.parity.cosine:.6f} with FP32, largest difference {claim.parity.max_abs:.2g}"
    return [f"on this device: {figures}"] if target.built_on_device else []


def compile_received(
    bundle: Bundle,
    manifest: Manifest,
    target: Target,
    progress: Progress,
    *,
    received: bool,
    variant: str = "",
    workdir: Path | None = None,
) -> Compiled:
    """Compile and audit a bundle; a foreign graph in a process of its own, which may crash.

    Args:
        bundle: the graph to compile.
        manifest: of the bundle, with its variant selected.
        target: the target with its options.
        progress: gets the steps.
        received: True if the bundle may come from anyone.
        variant: the name of the variant whose graph it is; empty for the bundle's own.
        workdir: the folder for the compiled files; None for that of the graph.
    """
    folder = bundle.graph.parent
    if target.built_on_device or not (received or find_file(manifest.model.spec) is not None):
        return target.compile(bundle, workdir or folder, progress.relay)
    recipe, precision = manifest.recipe, manifest.target.precision
    return compile_apart(
        target, precision, folder, manifest.inputs[0], manifest.outputs, recipe.target.batch, recipe.model.size_range,
        bundle.excluded, manifest.inputs[1:], variant=variant, workdir=workdir,
    )  # fmt: skip


def _doubts(audit: Audit) -> list[str]:
    return [f"doubt: {doubt}" for doubt in audit.doubts]


def _rehearse(artifact: Artifact, bundle: Bundle, target: Target, progress: Progress) -> list[str]:
    """Compile a bundle with a similar compiler, if there is one. Store its audit, and return notes about it."""
    with progress.step("Rehearse the build"):
        audit: Audit | None = target.rehearse(bundle)
    if audit is None:
        return []
    artifact.write_evidence(replace(audit, provenance=describe_provenance(artifact.manifest, audit.threads)))
    return [*audit.doubts, f"rehearsed: attention fused {audit.attention.fused} of {audit.attention.sites}"]
