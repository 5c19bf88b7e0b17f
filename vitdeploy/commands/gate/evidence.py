"""The evidence beside an artifact, with figures from its raw data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vitdeploy import environment, precision, targets, tasks
from vitdeploy.artifact import Artifact, EvidenceT
from vitdeploy.artifact.layout import FLIPS, SAMPLES, SITES
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import MeasureError, VitdeployError
from vitdeploy.evidence import Audit, Bench, Eval, OperatingPoint, Sensitivity
from vitdeploy.graph import structure as structures
from vitdeploy.measure import baseline as baselines
from vitdeploy.measure.operating import compare_at
from vitdeploy.measure.samples import MAX_FILE_BYTES
from vitdeploy.recipe import GateSpec
from vitdeploy.runtime.artifact_session import list_excluded
from vitdeploy.verdict import (
    Case,
    EvidenceName,
    Examined,
    Identity,
    Signature,
    Stored,
    examine,
)


@dataclass(frozen=True)
class Judged:
    """The evidence beside an artifact: as it was stored, and as its raw data gives it."""

    stored: Stored
    examined: Examined

    @property
    def bench(self) -> Bench | None:
        """The bench with figures from its samples; None if they cannot be computed from them."""
        return self.examined.bench if self._is_computed("bench") else None

    @property
    def evaluation(self) -> Eval | None:
        """The evaluation with figures from its samples; None if they cannot be computed from them."""
        return self.examined.evaluation if self._is_computed("eval") else None

    def _is_computed(self, name: EvidenceName) -> bool:
        return self.stored.manifest.stage == "artifact" and name not in self.examined.missing


def read_evidence(artifact: Artifact, *, store: bool = True) -> Judged:
    """Read the evidence beside an artifact, and compute its figures from its raw data.

    Args:
        artifact: the artifact or bundle.
        store: store an audit that had to be read again: see `inspect`.
    """
    missing: dict[EvidenceName, str] = {}
    unreadable: list[str] = []
    audit: Audit | None = None
    try:
        audit = inspect(artifact, store=store)
    except VitdeployError as error:
        missing["audit"] = error.message

    def read(kind: type[EvidenceT]) -> tuple[EvidenceT | None, str]:
        evidence, reason = artifact.read_evidence(kind)
        if "cannot be read" in reason:
            unreadable.append(reason)
        return evidence, reason

    bench, reason = read(Bench)
    if bench is None:
        missing["bench"] = f"{reason}: run vitdeploy bench {artifact.path}"
    evaluation, reason = read(Eval)
    if evaluation is None:
        missing["eval"] = f"{reason}: run vitdeploy eval {artifact.path}"
    samples = None
    if evaluation is not None and evaluation.samples:
        samples, reason = artifact.read_raw(SAMPLES, MAX_FILE_BYTES)
    if evaluation is not None and evaluation.thumbnails:
        pictures, _ = artifact.read_raw(FLIPS, MAX_FILE_BYTES)
        if hashlib.sha256(pictures or b"").hexdigest() != evaluation.thumbnails:
            unreadable.append(f"{FLIPS} is not the one that eval.json names: run vitdeploy eval {artifact.path}")
    kind = precision.kind_of(artifact.manifest.target.precision)
    stored = Stored(
        manifest=artifact.manifest,
        digest=artifact.digest,
        structure=structures.load(artifact.file(SITES)),
        identity=_identify(artifact),
        recipe_digest=artifact.recipe_digest,
        needs_images=kind.needs_images,
        numbers=kind.numbers,
        excluded=list_excluded(artifact.manifest.placement, artifact.manifest.quantized),
        audit=audit,
        bench=bench,
        evaluation=evaluation,
        sensitivity=read(Sensitivity)[0],
        samples=samples,
        missing=missing,
        unreadable=tuple(unreadable),
    )
    return Judged(stored, examine(stored))


def _identify(artifact: Artifact) -> Identity:
    """Return what evidence about this artifact must agree with. Only some engines belong to one device."""
    manifest = artifact.manifest
    target, record = targets.find(manifest.recipe.target), manifest.target
    bound = target.built_on_device and record.host is not None
    return Identity(
        recipe=manifest.recipe_digest,
        on_cpu=target.runs_on == "cpu",
        engine=record.backend or "" if bound else "",
        hardware=record.host.hardware if bound and record.host is not None else "",
    )


def make_case(artifact: Artifact, evidence: Judged, limits: GateSpec, signature: Signature | None = None) -> Case:
    """Return what the verdict is about: an artifact, its evidence, and the machine it is judged on."""
    recipe, examined = artifact.manifest.recipe, evidence.examined
    return Case(
        evidence.stored.audit,
        examined.bench,
        examined.evaluation,
        missing=examined.missing,
        faults=examined.faults,
        stage=artifact.manifest.stage,
        manifest=artifact.digest,
        machine=environment.host().machine,
        model_digest=artifact.manifest.model.digest,
        recipe=baselines.decisive_keys(recipe),
        size_bytes=artifact.manifest.deployed_bytes,
        audited_on=evidence.stored.audited_on,
        random_weights=artifact.random_weights,
        against=recipe.bench.against,
        against_artifact=Path(recipe.bench.against).is_absolute(),
        operating_point=_find_operating_point(artifact, examined, limits),
        signature=signature,
    )


def _find_operating_point(artifact: Artifact, examined: Examined, limits: GateSpec) -> OperatingPoint | str | None:
    """Return what both sides find at the threshold of the limits, from the samples; or why that is not known."""
    if limits.at_threshold is None or examined.outcomes is None:
        return None
    try:
        return compare_at(tasks.find(artifact.manifest.recipe.task), examined.outcomes, limits.at_threshold)
    except MeasureError as error:
        return error.message
