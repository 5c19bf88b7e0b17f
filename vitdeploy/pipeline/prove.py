"""Evidence about an artifact: the audit, and how to open it. Latency is timed in `benching`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import environment, targets
from vitdeploy.artifact import Artifact
from vitdeploy.data.preprocess import fed
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import SourceError, TargetUnavailable, UsageError
from vitdeploy.evidence import Audit
from vitdeploy.graph import structure as structures
from vitdeploy.graph.outline import outline
from vitdeploy.pipeline.compiling import SITES, compiled_of, store_audit, target_bundle
from vitdeploy.progress import Progress
from vitdeploy.recipe import TargetSpec
from vitdeploy.session import Array, Session


def inspect(path: Path) -> Audit:
    """What the compiled thing does. The stored audit serves as long as it is about this manifest; else it is read anew.

    Raises:
        TargetUnavailable: it must be read anew and the backend is not here.
    """
    artifact = artifacts.load(path)
    audit, why = artifact.read_evidence(Audit)
    if audit is None:
        if artifact.manifest.stage == "bundle":
            audit = _audit_of_bundle(artifact)
        else:
            target = targets.find(artifact.manifest.recipe.target)
            missing = target.unavailable()
            if missing is not None:
                raise TargetUnavailable(f"{why}, and it cannot be read anew here: {missing.why}", fix=missing.fix)
            audit = store_audit(artifact, target.audit(target_bundle(path, artifact.manifest), compiled_of(artifact)))
    structure = outline(structures.load(path / SITES))
    return audit.model_copy(update={"files": artifact.manifest.files, "structure": structure})


def same_images(loaded: Sequence[Artifact]) -> Array:
    """Images that all artifacts take, uint8 NCHW, at the batch the first is optimised for.

    Raises:
        UsageError: they take inputs of different shapes.
    """
    first = loaded[0].manifest
    if any(a.manifest.inputs[0].shape != first.inputs[0].shape for a in loaded):
        raise UsageError(
            "the artifacts take inputs of different shapes", fix="Compare those of one model and one batch."
        )
    return natural_image(0, first.preprocess, first.recipe.target.batch.opt)


def with_streams(artifact: Artifact, streams: int | None) -> Artifact:
    """The artifact, to be opened with so many streams; a target that has none refuses the option by name."""
    if streams is None:
        return artifact
    manifest = artifact.manifest
    target = TargetSpec.model_validate({**manifest.recipe.target.model_dump(), "streams": streams})
    recipe = manifest.recipe.model_copy(update={"target": target})
    return Artifact(artifact.path, manifest.model_copy(update={"recipe": recipe}), artifact.digest)


def feeds(artifact: Artifact, pixels: Array) -> dict[str, Array]:
    """The images in the form that the artifact takes; turning them into it is no part of a timed run."""
    manifest = artifact.manifest
    return {manifest.inputs[0].name: fed(pixels, manifest.preprocess, manifest.recipe.target.input)}


def open_session(artifact: Artifact, threads: int | None, progress: Progress | None = None) -> Session:
    """Open an artifact to run it here; `progress` is told when its numbers may differ on this CPU.

    Raises:
        TargetUnavailable: it is a bundle, or its backend or device is not here.
    """
    manifest = artifact.manifest
    if manifest.stage == "bundle":
        raise TargetUnavailable(
            f"{artifact.path} is a bundle: nothing is compiled yet",
            fix=f"On the device run: vitdeploy compile {artifact.path}",
        )
    if (
        progress is not None
        and manifest.quantized.get("weight_bits") == "8"
        and not environment.host().int8_dot_product
    ):
        progress.warn(
            f"{artifact.path} was quantized on a CPU with INT8 dot products; this one saturates sums of u8 x s8: its "
            "accuracy may be lower here, so evaluate it here, or export it on this machine"
        )
    return targets.find(manifest.recipe.target).open(compiled_of(artifact), manifest.target.precision, threads)


def reference_of(artifact: Artifact, threads: int | None) -> Session:
    """The FP32 reference of an artifact, opened.

    Raises:
        SourceError: it cannot be rebuilt here.
        MeasureError: it is another model now.
    """
    from vitdeploy.pipeline.reference import rebuild_reference

    try:
        runs_on = targets.find(artifact.manifest.recipe.target).runs_on
        return rebuild_reference(artifact.manifest, threads=threads, runs_on=runs_on)
    except ImportError as error:
        raise SourceError(f"{error.name} is not installed", fix="pip install 'vitdeploy[export]'.") from None


def _audit_of_bundle(artifact: Artifact) -> Audit:
    """A bundle knows its sites, and that nothing was compiled."""
    from vitdeploy.evidence import LinearAudit, NormAudit
    from vitdeploy.targets._match import attention_audit

    manifest = artifact.manifest
    structure = target_bundle(artifact.path, manifest).structure
    reasons = {site.name: "not compiled yet: this is a bundle" for site in structure.attention}
    return Audit(
        target=manifest.target.kind,
        precision=manifest.target.precision,
        attention=attention_audit(structure, {}, reasons, "graph"),
        layernorm=NormAudit(sites=len(structure.norms), fused=0),
        linears=LinearAudit(other=len(structure.linears)),
        manifest=artifact.digest,
    )
