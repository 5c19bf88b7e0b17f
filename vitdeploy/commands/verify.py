"""`vitdeploy verify`: an artifact and its evidence are what a key signed, unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vitdeploy.artifact import Artifact
from vitdeploy.artifact.family import Family
from vitdeploy.commands.signing.attestation import DataDigest, Environment, JudgedCheck, Predicate, explain_evidence
from vitdeploy.commands.signing.keys import PublicKey
from vitdeploy.commands.signing.model_signature import explain_files
from vitdeploy.commands.signing.subject import JUDGED_FILES, SignedSubject, of_artifact, of_family
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Status
from vitdeploy.progress import Progress

_SHOWN = 20
"""Reasons in one line; more are counted."""


class Verified(BaseModel):
    """The facts that a key vouches for. Of a family they are about the pair, and all of its evidence is listed.

    Attributes:
        artifact: the folder of the artifact, bundle or family.
        key: the sha256 of the public key, in DER.
        files: the number of files that the signature covers.
        evidence: the evidence that the attestation covers.
        verdict: the verdict that it states; None if there was none.
        limits: the limits of that verdict.
        checks: its checks.
        data: digests of the data that the evidence is about.
        environment: the machines and libraries that it was made with.
    """

    model_config = ConfigDict(frozen=True)
    artifact: str
    key: str
    files: int
    evidence: tuple[str, ...]
    verdict: Status | None
    limits: Mapping[str, float | str]
    checks: tuple[JudgedCheck, ...]
    data: tuple[DataDigest, ...]
    environment: tuple[Environment, ...]


def verify_artifact(artifact: Artifact, key: PublicKey, progress: Progress) -> Verified:
    """Verify the signatures of an artifact or bundle.

    Raises:
        ArtifactError: it is not signed with this key, or was changed since. All reasons are in the message.
    """
    with progress.step("Verify"):
        subject = of_artifact(artifact)
        predicate, reasons = _explain(subject, key)
    artifact.check_unchanged()
    _require_none(artifact.path, key, reasons)
    return _summarize(artifact.path, key, {"": (subject, predicate)})


def verify_family(family: Family, key: PublicKey, progress: Progress) -> Verified:
    """Verify the signatures of a family and of each of its parts.

    Raises:
        ArtifactError: see `verify_artifact`; or the same about a part.
    """
    verified, reasons = {}, []
    for part, subject in _list_subjects(family).items():
        with progress.step(f"Verify the {part or 'pair'}"):
            predicate, problems = _explain(subject, key)
        verified[part] = subject, predicate
        reasons += [f"{part}: {problem}" if part else problem for problem in problems]
    for artifact in family.parts.values():
        artifact.check_unchanged()
    _require_none(family.path, key, reasons)
    return _summarize(family.path, key, verified)


def explain_unsigned(judged: Artifact | Family, key: PublicKey) -> str:
    """Return why a gate may not rely on an artifact or family and on the evidence that it reads; empty if it may.

    The verdict and the report are left out: the gate writes its own verdict.

    Raises:
        ArtifactError: a piece of evidence cannot be read.
    """
    reasons = []
    for part, subject in _list_subjects(judged).items():
        problems = _explain(subject, key, only_judged=True)[1]
        reasons += [f"{part}: {problem}" if part else problem for problem in problems]
    return _join(reasons)


def _list_subjects(judged: Artifact | Family) -> dict[str, SignedSubject]:
    """Return what is signed, by the name of the part; the whole has an empty one."""
    if isinstance(judged, Artifact):
        return {"": of_artifact(judged)}
    return {"": of_family(judged), **{name: of_artifact(part) for name, part in judged.parts.items()}}


def _explain(
    subject: SignedSubject, key: PublicKey, *, only_judged: bool = False
) -> tuple[Predicate | None, list[str]]:
    """Return the attested facts, and all reasons why the signatures do not hold."""
    problems = explain_files(subject, key)
    predicate, more = explain_evidence(subject, key, JUDGED_FILES if only_judged else None)
    return predicate, [*problems, *more]


def _require_none(folder: Path, key: PublicKey, reasons: list[str]) -> None:
    if reasons:
        raise ArtifactError(
            f"{folder} is not what the key {key.path} signed: {_join(reasons)}",
            fix="Do not rely on it. If you made the change yourself, run vitdeploy sign again.",
        )


def _join(reasons: list[str]) -> str:
    more = [f"and {len(reasons) - _SHOWN} more"] if len(reasons) > _SHOWN else []
    return "; ".join([*reasons[:_SHOWN], *more])


def _summarize(
    folder: Path, key: PublicKey, verified: Mapping[str, tuple[SignedSubject, Predicate | None]]
) -> Verified:
    subject, predicate = verified[""]
    assert predicate is not None, "without one there is a reason"
    names = [
        f"{part}/{name}" if part else name
        for part, (each, _) in sorted(verified.items())
        for name in sorted(each.evidence)
    ]
    return Verified(
        artifact=str(folder),
        key=key.fingerprint,
        files=len(subject.files),
        evidence=tuple(names),
        verdict=predicate.verdict,
        limits=predicate.limits,
        checks=predicate.checks,
        data=predicate.data,
        environment=predicate.environment,
    )
