"""The last steps, on whatever machine they can be done: compile, audit, seal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vitdeploy import artifact as artifacts
from vitdeploy import environment
from vitdeploy.artifact import Artifact, Manifest, Parity, PassRecord, Trial
from vitdeploy.artifact.layout import EXAMPLE
from vitdeploy.errors import CompileError, TargetUnavailable
from vitdeploy.evidence import Audit
from vitdeploy.graph.onnx_session import compare
from vitdeploy.pipeline.examples import load_example
from vitdeploy.pipeline.usage import usage
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import target_bundle
from vitdeploy.targets import Compiled, Target


class Exported(BaseModel):
    """What `export` and `compile` print."""

    model_config = ConfigDict(frozen=True)
    artifact: str
    stage: Literal["bundle", "artifact"]
    seconds: float
    passes: tuple[PassRecord, ...]
    weights: str
    exporter: str
    parity: Parity
    graph_parity: Parity | None
    precision: str = ""
    trials: tuple[Trial, ...] = ()
    """The ways to lower the precision that were tried, and what each lost and gained."""
    faster_than_fp32: bool | None = None
    """None: not known, or no difference seen on this machine; `bench` looks closer."""
    notes: tuple[str, ...] = ()
    host: str = ""
    """Where it was compiled, as --host named it, if not here."""


def finish(
    folder: Path, manifest: Manifest, target: Target, progress: Progress, out: Path, *, here: bool = True
) -> tuple[Manifest, list[str]]:
    """Compile and audit in `folder` when the target can here, seal the folder, and store the audit.

    `out` is where the folder will be, for what users are told to do with it. Not `here`: another machine compiles it.
    """
    manifest = manifest.model_copy(update={"usage": usage(manifest)})
    if not here:
        artifacts.seal(folder, manifest)
        return manifest, []
    missing = target.unavailable()
    if missing is not None:
        if not target.built_on_device:
            raise TargetUnavailable(f"{target.name}: {missing.why}", fix=missing.fix)
        note = f"this is a bundle, not an engine: {missing.why}. On the device run: vitdeploy compile {out}"
        return manifest, [note, *_rehearse(folder, manifest, target, progress)]
    bundle = target_bundle(folder, manifest)
    with progress.step(f"Compile with {target.name}"):
        compiled = target.compile(bundle, folder, progress.relay)
    record = manifest.target.model_copy(update={"backend": compiled.backend, "host": environment.host()})
    manifest = manifest.model_copy(update={"stage": "artifact", "target": record, "runs": compiled.runs})
    with progress.step("Audit what was compiled"):
        audit = target.audit(bundle, compiled)
    notes = [f"doubt: {doubt}" for doubt in audit.doubts]
    if target.built_on_device:
        with progress.step("Run it on the stored example"):
            parity = _parity_here(folder, compiled, target, manifest)
        manifest = manifest.model_copy(update={"device_parity": parity})
        notes.append(f"on this device: cosine {parity.cosine:.6f} with FP32, largest difference {parity.max_abs:.2g}")
    artifacts.seal(folder, manifest)
    store_audit(artifacts.load(folder), audit)
    return manifest, notes


def _rehearse(folder: Path, manifest: Manifest, target: Target, progress: Progress) -> list[str]:
    """Seal a bundle with what a like compiler makes of it, where there is one."""
    with progress.step("Rehearse the build"):
        audit = target.rehearse(target_bundle(folder, manifest))
    artifacts.seal(folder, manifest)
    if audit is None:
        return []
    store_audit(artifacts.load(folder), audit)
    return [*audit.doubts, f"rehearsed: attention fused {audit.attention.fused} of {audit.attention.sites}"]


def _parity_here(folder: Path, compiled: Compiled, target: Target, manifest: Manifest) -> Parity:
    """What was compiled against the reference's outputs that export stored: a device has no reference of its own.

    Raises:
        CompileError: it gives NaN or infinity, which no figure about it could make up for.
    """
    precision = manifest.target.precision
    image, expected = load_example(folder / EXAMPLE)
    with target.open(compiled, precision, None) as session:
        parity = compare(expected, session.run({manifest.inputs[0].name: image}), batch=len(image))
    if not parity.finite:
        raise CompileError(f"the {precision} engine gives NaN or infinity on its example", fix="Use --precision fp32.")
    return parity


def store_audit(artifact: Artifact, audit: Audit) -> Audit:
    """Keep the audit beside the manifest it is about."""
    audit = audit.model_copy(update={"manifest": artifact.digest})
    artifact.write_evidence(audit)
    return audit


def summary(out: Path, manifest: Manifest, seconds: float, notes: list[str]) -> Exported:
    """What `export` and `compile` print about the folder."""
    if manifest.model.weights == "random":
        notes = [*notes, "random weights: speed and fusion are real, accuracy means nothing"]
    notes = [*notes, *(f"{a.exporter} exporter failed: {a.error}" for a in manifest.export.fallbacks)]
    return Exported(
        artifact=str(out),
        stage=manifest.stage,
        seconds=round(seconds, 1),
        passes=manifest.passes,
        weights=manifest.model.weights,
        exporter=manifest.export.exporter,
        parity=manifest.export.parity,
        graph_parity=manifest.graph_parity,
        precision=manifest.target.precision,
        trials=manifest.trials,
        faster_than_fp32=_faster(manifest.trials),
        notes=tuple(notes),
    )


def _faster(trials: Iterable[Trial]) -> bool | None:
    """Whether what was kept beats the target's own float graph, as far as its interval tells."""
    ratio = next((t.speedup for t in trials if t.kept), None)
    if ratio is None or ratio.ci95[0] <= 1 <= ratio.ci95[1]:
        return None
    return ratio.ratio > 1
