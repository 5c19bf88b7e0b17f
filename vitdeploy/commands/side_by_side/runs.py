"""One of several artifacts: its figures, computed again from the raw data, its verdict, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from vitdeploy.artifact import Artifact
from vitdeploy.commands.figures import list_keys, record_artifact
from vitdeploy.commands.gate.evidence import read_evidence
from vitdeploy.commands.report.report import make_subject
from vitdeploy.commands.sweep.trial import ARTIFACT
from vitdeploy.evidence import TrialRecord
from vitdeploy.frozen import replace
from vitdeploy.render.html.parts import Missing, Word
from vitdeploy.render.html.subject import Kind
from vitdeploy.render.html.verdict import explain_stale_verdict

_NEEDED: tuple[Kind, ...] = ("audit", "eval", "bench", "gate")
"""In the order in which they are made."""


@dataclass(frozen=True)
class ArtifactRun:
    """An artifact beside others.

    Attributes:
        path: its folder.
        record: its figures.
        verdict: by its stored limits, from the evidence as it is now.
        outdated: the stored verdict was given before the last bench or eval.
        missing: evidence -> why it is missing or out of date, and the command that makes it.
        keys: the keys of its recipe.
        machine: the machine of its bench in words; empty if it is known by its digest only.
    """

    path: Path
    record: TrialRecord
    verdict: Word
    outdated: bool
    missing: dict[str, Missing]
    keys: dict[str, str]
    machine: str = ""


def read_runs(artifacts: Sequence[Artifact]) -> list[ArtifactRun]:
    """Return artifacts with their figures. Each has a name that no other one has."""
    names = name_apart([artifact.path.resolve() for artifact in artifacts])
    return [_read_run(name, artifact) for name, artifact in zip(names, artifacts, strict=True)]


def _read_run(name: str, artifact: Artifact) -> ArtifactRun:
    evidence = read_evidence(artifact, store=False)
    subject = make_subject(artifact)
    stale = explain_stale_verdict(subject)
    record = record_artifact(name, artifact, evidence.evaluation, evidence.stored.audit, evidence.bench)
    faults = tuple(f"{fault.name}: {fault.why}" for fault in evidence.examined.faults)
    record = replace(record, doubts=(*record.doubts, *faults))
    gate = subject.judged
    if gate is not None and gate.checks:
        failing = tuple(f"{check.name}: {check.why}" for check in gate.checks if check.status != "pass")
        record = replace(record, limits=gate.limits, verdict=gate.verdict, failing=failing)
    missing: dict[str, Missing] = {kind: gap for kind in _NEEDED if (gap := subject.missing.get(kind)) is not None}
    if stale is not None:
        missing["gate"] = Missing(f"out of date: {stale.why}", stale.fix)
    keys = {key.removeprefix("recipe."): str(value) for key, value in list_keys(artifact.manifest.recipe).items()}
    return ArtifactRun(
        path=artifact.path,
        record=record,
        verdict="not judged" if gate is None else gate.verdict,
        outdated=stale is not None,
        missing=missing,
        keys=keys,
        machine=_describe_machine(artifact, record),
    )


def _describe_machine(artifact: Artifact, record: TrialRecord) -> str:
    host = artifact.manifest.target.host
    if host is None or host.machine != record.machine:
        return ""
    return ", ".join(filter(None, (host.gpu, host.cpu, f"{host.cores} cores")))


def name_apart(paths: Sequence[Path]) -> list[str]:
    """Return the shortest end of each path that no other one has, without the folder `artifact` of a trial.

    Args:
        paths: absolute, and each of them once.
    """
    known = set(paths)
    shown = [path.parent if _is_in_trial(path) and path.parent not in known else path for path in paths]
    return [_find_shortest_end(path, shown) for path in shown]


def _is_in_trial(path: Path) -> bool:
    return path.name == ARTIFACT and path.parent != path.parent.parent


def _find_shortest_end(path: Path, paths: Sequence[Path]) -> str:
    own = path.parts
    least = 2 if path.name == ARTIFACT else 1  # this folder alone says nothing
    for length in range(least, len(own)):
        if sum(other.parts[-length:] == own[-length:] for other in paths) == 1:
            return PurePath(*own[-length:]).as_posix()
    return path.as_posix()
