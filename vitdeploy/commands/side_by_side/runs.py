"""One of several artifacts: its figures, computed again from the raw data, its verdict, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.artifact import Artifact
from vitdeploy.commands.figures import list_keys, record_artifact
from vitdeploy.commands.gate.evidence import read_evidence
from vitdeploy.commands.report.report import make_subject
from vitdeploy.evidence import TrialRecord
from vitdeploy.frozen import replace
from vitdeploy.render.html.parts import Missing, Word
from vitdeploy.render.html.subject import Kind
from vitdeploy.render.html.verdict import head

_NEEDED: tuple[Kind, ...] = ("audit", "eval", "bench", "gate")
"""In the order in which they are made."""


@dataclass(frozen=True)
class ArtifactRun:
    """An artifact beside others.

    Attributes:
        path: its folder.
        record: its figures.
        verdict: by its stored limits, from the evidence as it is now.
        missing: evidence -> why it is missing, and the command that makes it.
        keys: the keys of its recipe.
        machine: the machine of its bench in words; empty if it is known by its digest only.
    """

    path: Path
    record: TrialRecord
    verdict: Word
    missing: dict[str, Missing]
    keys: dict[str, str]
    machine: str = ""


def read_runs(artifacts: Sequence[Artifact]) -> list[ArtifactRun]:
    """Return artifacts with their figures. Each has a name that no other one has."""
    names = _name_apart([artifact.path.resolve() for artifact in artifacts])
    return [_read_run(name, artifact) for name, artifact in zip(names, artifacts, strict=True)]


def _read_run(name: str, artifact: Artifact) -> ArtifactRun:
    evidence = read_evidence(artifact, store=False)
    subject = make_subject(artifact)
    top = head(subject)
    record = record_artifact(name, artifact, evidence.evaluation, evidence.stored.audit, evidence.bench)
    faults = tuple(f"{fault.name}: {fault.why}" for fault in evidence.examined.faults)
    record = replace(record, doubts=(*record.doubts, *faults))
    gate = subject.judged
    if gate is not None and gate.checks:
        failing = tuple(f"{check.name}: {check.why}" for check in gate.checks if check.status != "pass")
        record = replace(record, limits=gate.limits, verdict=gate.verdict, failing=failing)
    missing: dict[str, Missing] = {kind: gap for kind in _NEEDED if (gap := subject.missing.get(kind)) is not None}
    if top.verdict == "out of date" and top.missing is not None:
        missing["gate"] = top.missing
    keys = {key.removeprefix("recipe."): str(value) for key, value in list_keys(artifact.manifest.recipe).items()}
    return ArtifactRun(artifact.path, record, top.verdict, missing, keys, _describe_machine(artifact, record))


def _describe_machine(artifact: Artifact, record: TrialRecord) -> str:
    host = artifact.manifest.target.host
    if host is None or host.machine != record.machine:
        return ""
    return ", ".join(filter(None, (host.gpu, host.cpu, f"{host.cores} cores")))


def _name_apart(paths: Sequence[Path]) -> list[str]:
    """Return the shortest end of each path that no other one has, without the folder `artifact` of a trial."""
    parts = [path.parent.parts if path.name == "artifact" and len(path.parts) > 2 else path.parts for path in paths]
    names = []
    for own in parts:
        length = next((n for n in range(1, len(own)) if sum(p[-n:] == own[-n:] for p in parts) == 1), len(own))
        names.append("/".join(own[-length:]))
    return names
