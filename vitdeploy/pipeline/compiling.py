"""The last steps, on whatever machine they can be done: compile, audit, seal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vitdeploy import artifact as artifacts
from vitdeploy import environment, targets
from vitdeploy.artifact import Artifact, Manifest, Parity, PassRecord, TensorSpec, Trial
from vitdeploy.errors import TargetUnavailable, UsageError
from vitdeploy.evidence import Audit
from vitdeploy.graph import structure as structures
from vitdeploy.progress import Progress
from vitdeploy.recipe import Batch
from vitdeploy.targets import Bundle, Compiled, Target

GRAPH = "graph.onnx"
SITES = "sites.json"


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


def compile_bundle(source: Path, out: Path | None, progress: Progress, *, force: bool = False) -> Exported:
    """Finish a bundle on the device it is for; in its own place unless `out` names another.

    Raises:
        TargetUnavailable: the backend or its device is not here either.
    """
    started = time.monotonic()
    bundle = artifacts.load(source)
    target = targets.find(bundle.manifest.recipe.target)
    target.require()
    in_place = out is None or out.absolute() == source.absolute()
    with artifacts.staged(out or source, force=force or in_place) as folder:
        for entry in bundle.manifest.files:
            if _belongs_to_bundle(entry.path):
                (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / entry.path, folder / entry.path)
        manifest = bundle.manifest.model_copy(update={"stage": "bundle", "runs": None})
        manifest, notes = finish(folder, manifest, target, progress, out or source)
    return summary(out or source, manifest, time.monotonic() - started, notes)


def target_bundle(folder: Path, manifest: Manifest) -> Bundle:
    """What the target's compiler and audit are given."""
    return bundle_of(folder, manifest.target.precision, manifest.inputs[0], manifest.recipe.target.batch)


def bundle_of(folder: Path, precision: str, image: TensorSpec, batch: Batch) -> Bundle:
    """The same, of a target-ready graph that is not an artifact yet."""
    shape = (batch.opt, *(d for d in image.shape[1:] if isinstance(d, int)))
    return Bundle(
        graph=folder / GRAPH,
        structure=structures.load(folder / SITES),
        precision=precision,
        batch=batch,
        input_name=image.name,
        input_shape=shape,
    )


def compiled_of(artifact: Artifact) -> Compiled:
    """What was compiled into a loaded artifact."""
    manifest = artifact.manifest
    if manifest.runs is None or manifest.target.backend is None:
        raise UsageError(f"{artifact.path} is a bundle", fix=f"On the device run: vitdeploy compile {artifact.path}")
    return Compiled(artifact.path, manifest.runs, manifest.target.backend)


def finish(
    folder: Path, manifest: Manifest, target: Target, progress: Progress, out: Path, *, here: bool = True
) -> tuple[Manifest, list[str]]:
    """Compile and audit in `folder` when the target can here, seal the folder, and store the audit.

    `out` is where the folder will be, for what users are told to do with it. Not `here`: another machine compiles it.
    """
    if not here:
        artifacts.seal(folder, manifest)
        return manifest, []
    missing = target.unavailable()
    if missing is not None:
        if not target.built_on_device:
            raise TargetUnavailable(f"{target.name}: {missing.why}", fix=missing.fix)
        artifacts.seal(folder, manifest)
        note = f"this is a bundle, not an engine: {missing.why}. On the device run: vitdeploy compile {out}"
        return manifest, [note]
    bundle = target_bundle(folder, manifest)
    with progress.step(f"Compile with {target.name}"):
        compiled = target.compile(bundle, folder)
    record = manifest.target.model_copy(update={"backend": compiled.backend, "host": environment.host()})
    manifest = manifest.model_copy(update={"stage": "artifact", "target": record, "runs": compiled.runs})
    with progress.step("Audit what was compiled"):
        audit = target.audit(bundle, compiled)
    artifacts.seal(folder, manifest)
    store_audit(artifacts.load(folder), audit)
    return manifest, [f"doubt: {doubt}" for doubt in audit.doubts]


def store_audit(artifact: Artifact, audit: Audit) -> Audit:
    """Keep the audit beside the manifest it is about."""
    audit = audit.model_copy(update={"manifest": artifact.digest})
    artifact.write_evidence(audit)
    return audit


def _belongs_to_bundle(name: str) -> bool:
    return name == SITES or name.startswith((GRAPH, "reference/"))


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
