"""Evidence about an artifact: the audit and the latency."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import environment, targets
from vitdeploy.artifact import Artifact
from vitdeploy.data.preprocess import fed, normalized
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import MeasureError, SourceError, TargetUnavailable, UsageError
from vitdeploy.evidence import Audit, Bench
from vitdeploy.graph import structure as structures
from vitdeploy.graph.outline import outline
from vitdeploy.measure import latency
from vitdeploy.pipeline.compiling import SITES, compiled_of, store_audit, target_bundle
from vitdeploy.pipeline.observing import observe, outside_only
from vitdeploy.progress import Progress
from vitdeploy.session import Array, Feeds, Session


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


def bench(
    paths: Sequence[Path], progress: Progress, *, seconds: float | None = None, threads: int | None = None
) -> Bench:
    """Latency of artifacts against the FP32 reference of the first one, interleaved; stored beside the first.

    Raises:
        UsageError: the artifacts do not take the same input.
        TargetUnavailable: an artifact cannot run here.
    """
    loaded = [artifacts.load(path) for path in paths]
    first = loaded[0].manifest
    spec = first.recipe.bench
    threads = threads or (None if spec.threads == "auto" else spec.threads) or environment.available_cores()
    batch = first.recipe.target.batch.opt
    pixels = same_images(loaded)
    inputs = [feeds(artifact, pixels) for artifact in loaded]
    doubts: list[str] = []
    with ExitStack() as stack:
        # First, because it is quick and may refuse; the reference then leads the list.
        try:
            sessions = [stack.enter_context(open_session(artifact, threads, progress)) for artifact in loaded]
        except TargetUnavailable as error:
            alone = _timed_outside(loaded, inputs[0], seconds or spec.seconds, error.message, progress)
            if alone is None:
                raise
            return _kept(loaded[0], alone)
        try:
            with progress.step(f"Load the reference {first.model.spec}"):
                sessions.insert(0, stack.enter_context(reference_of(loaded[0], threads, same_device=True)))
                inputs.insert(0, {first.inputs[0].name: normalized(pixels, first.preprocess)})
        except (SourceError, MeasureError) as error:
            doubts.append(f"no FP32 reference here, so no speed-up: {error.message}")
        found = latency.measure(sessions, inputs, batch=batch, seconds=seconds or spec.seconds, progress=progress)
    if doubts:  # the first artifact took the reference's place in the measurement, which it is not
        runs = tuple(run.model_copy(update={"speedup": None}) for run in found.runs)
        found = found.model_copy(update={"runs": runs, "doubts": (*doubts, *found.doubts), "valid": False})
    own = feeds(loaded[0], pixels)
    beside = observe(loaded[0], lambda: open_session(loaded[0], threads), own, seconds or spec.seconds, progress)
    return _kept(loaded[0], found.model_copy(update=beside))


def _timed_outside(
    loaded: Sequence[Artifact], first: Feeds, seconds: float, why: str, progress: Progress
) -> Bench | None:
    alone = len(loaded) == 1 and loaded[0].manifest.stage == "artifact"
    return outside_only(loaded[0], first, seconds, why, progress) if alone else None


def _kept(artifact: Artifact, found: Bench) -> Bench:
    found = found.model_copy(update={"manifest": artifact.digest, "machine": environment.host().machine})
    artifact.write_evidence(found)
    return found


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


def reference_of(artifact: Artifact, threads: int | None, *, same_device: bool = False) -> Session:
    """The FP32 reference of an artifact, opened.

    Raises:
        SourceError: it cannot be rebuilt here.
        MeasureError: it is another model now, or it cannot run on the artifact's device and `same_device` is asked for.
    """
    from vitdeploy.pipeline.reference import rebuild_reference

    try:
        runs_on = targets.find(artifact.manifest.recipe.target).runs_on
        return rebuild_reference(artifact.manifest, threads=threads, runs_on=runs_on, same_device=same_device)
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
