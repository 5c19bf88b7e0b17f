"""`vitdeploy sign`: a signature over the files of an artifact, and an attestation of its evidence, with one key."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vitdeploy.artifact import EVIDENCE, Artifact
from vitdeploy.artifact.family import Family
from vitdeploy.artifact.layout import ATTESTATION, MODEL_SIGNATURE
from vitdeploy.commands.family.gate import judge_family_again
from vitdeploy.commands.gate.gate import judge_again
from vitdeploy.commands.signing.attestation import DataDigest, describe, sign_statement
from vitdeploy.commands.signing.keys import PrivateKey
from vitdeploy.commands.signing.model_signature import sign_files
from vitdeploy.commands.signing.subject import SignedSubject, of_artifact, of_family
from vitdeploy.errors import UsageError
from vitdeploy.evidence import Check, Gate, Status
from vitdeploy.progress import Progress

_ROUNDING = 1e-6
"""Figures that are computed again on another machine differ by less."""


class Signed(BaseModel):
    """The signatures that were written.

    Attributes:
        artifact: the folder of the artifact, bundle or family.
        key: the sha256 of the public key, in DER.
        files: the number of files that the signature covers.
        evidence: the evidence that the attestation covers; of a family by part, `encoder/bench.json`.
        verdict: the verdict that it states; None if there is none.
        written: the files that were written.
        next: the command that verifies them.
    """

    model_config = ConfigDict(frozen=True)
    artifact: str
    key: str
    files: int
    evidence: tuple[str, ...]
    verdict: Status | None
    written: tuple[str, ...]
    next: str


@dataclass(frozen=True)
class _Signatures:
    """The signatures of one folder, before they are written."""

    subject: SignedSubject
    contents: Mapping[str, bytes]
    verdict: Status | None


def sign_artifact(artifact: Artifact, key: PrivateKey, progress: Progress) -> Signed:
    """Sign an artifact or bundle, in place of earlier signatures.

    Raises:
        UsageError: its evidence is outdated or cannot be read, or its verdict is not what the evidence gives.
        ArtifactError: it changed meanwhile, or its folder cannot be written.
    """
    with progress.step("Sign"):
        signatures = _sign(artifact, key)
    artifact.check_unchanged()
    artifact.write_beside(signatures.contents)
    return _summarize(artifact, key, {"": signatures})


def sign_family(family: Family, key: PrivateKey, progress: Progress) -> Signed:
    """Sign a family, and each of its parts, so that a part can be verified alone.

    Raises:
        UsageError: evidence of a part or of the pair is outdated or cannot be read, or a verdict is not what the
            evidence gives.
        ArtifactError: it changed meanwhile, or its folder cannot be written.
    """
    verdict = _require_own_verdict(family)
    subject = of_family(family)
    _require_current(family.path, subject)
    _require_judged(family.path, subject, verdict)
    signatures = {}
    for name, part in family.parts.items():
        with progress.step(f"Sign the {name}"):
            signatures[f"{name}/"] = _sign(part, key, subject.parts[name])
    with progress.step("Sign the pair"):
        statement = describe(subject, None)
        contents = {MODEL_SIGNATURE: sign_files(subject, key), ATTESTATION: sign_statement(statement, key)}
    signatures[""] = _Signatures(subject, contents, statement.predicate.verdict)
    for part in family.parts.values():
        part.check_unchanged()
    for name, part in family.parts.items():
        part.write_beside(signatures[f"{name}/"].contents)
    family.write_beside(contents)
    return _summarize(family, key, signatures)


def suggest_gate(judged: Artifact | Family) -> str:
    """Return the command that gives a verdict which can be signed."""
    recipe = (judged.encoder if isinstance(judged, Family) else judged).manifest.recipe
    options = " --before-signing" if recipe.gate.require_signed is not None else ""
    return f"vitdeploy gate {_locate(judged)}{options}"


def _sign(artifact: Artifact, key: PrivateKey, subject: SignedSubject | None = None) -> _Signatures:
    """Return the signatures of an artifact, after a check that its evidence belongs to it.

    Args:
        artifact: the artifact.
        key: the private key.
        subject: the artifact as a verdict about its family was compared with; None reads it now.
    """
    verdict = _require_own_verdict(artifact)
    subject = subject or of_artifact(artifact)
    _require_current(artifact.path, subject)
    _require_judged(artifact.path, subject, verdict)
    statement = describe(subject, _find_calibration(artifact))
    contents = {MODEL_SIGNATURE: sign_files(subject, key), ATTESTATION: sign_statement(statement, key)}
    return _Signatures(subject, contents, None if verdict is None else verdict.verdict)


def _require_own_verdict(judged: Artifact | Family) -> Gate | None:
    """Return the stored verdict; None if there is none.

    Raises:
        UsageError: it was given about other evidence, or the evidence gives another verdict or other checks.
    """
    verdict = _require_fitting_verdict(judged)
    if verdict is None:
        return None
    fresh = judge_family_again(judged, verdict) if isinstance(judged, Family) else judge_again(judged, verdict)
    problem = ""
    if fresh.verdict != verdict.verdict:
        problem = f"gate.json says {verdict.verdict}, and the evidence gives {fresh.verdict}"
    elif name := _find_other_check(verdict, fresh):
        problem = f"the check {name!r} in gate.json is not what the evidence gives"
    if problem:
        raise UsageError(f"{judged.path}: {problem}", fix=f"Run {suggest_gate(judged)}.")
    return verdict


def _find_other_check(stored: Gate, fresh: Gate) -> str:
    """Return the name of a check that only one of them has, or that is not the same in both; empty if all are."""
    mine, theirs = ([check.name for check in each.checks] for each in (stored, fresh))
    if mine != theirs:
        return min({*theirs} ^ {*mine}, default=theirs[0])
    pairs = zip(stored.checks, fresh.checks, strict=True)
    return next((check.name for check, again in pairs if not _are_same(check, again)), "")


def _are_same(one: Check, other: Check) -> bool:
    figures = ((one.observed, other.observed), (one.limit, other.limit))
    return one.status == other.status and all(_are_close(*pair) for pair in figures)


def _are_close(one: float | str | None, other: float | str | None) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    return one == other


def _require_fitting_verdict(judged: Artifact | Family) -> Gate | None:
    """Return the stored verdict, which has to be about the evidence that is there now; None if there is none."""
    verdict, reason = judged.read_evidence(Gate)
    if verdict is None:
        if reason.startswith("there is no"):
            return None
        raise UsageError(f"{judged.path}: {reason}", fix=f"Run {suggest_gate(judged)}.")
    if verdict.digest != judged.evidence_digest():
        raise UsageError(
            f"{judged.path}: gate.json was given about other evidence than is there now",
            fix=f"Run {suggest_gate(judged)}.",
        )
    return verdict


def _require_judged(folder: Path, subject: SignedSubject, verdict: Gate | None) -> None:
    """Check that the evidence that is signed is what the verdict is about, and that it is still this verdict.

    Raises:
        UsageError: another process changed it since it was judged again.
    """
    raw = subject.evidence.get(Gate.file)
    try:
        signed = None if raw is None else Gate.model_validate_json(raw)
    except ValueError as error:
        raise UsageError(f"{folder}: gate.json is not a verdict", fix="Remove it, or make it again.") from error
    if signed != verdict or (verdict is not None and verdict.digest != subject.judged_digest):
        raise UsageError(f"{folder}: the evidence changed while it was judged", fix="Run vitdeploy sign again.")


def _require_current(folder: Path, subject: SignedSubject) -> None:
    """Check that all evidence is about this artifact or family, and a family's verdict about this evidence."""
    for name in sorted(set(EVIDENCE) & set(subject.evidence)):
        try:
            about = json.loads(subject.evidence[name])["manifest"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UsageError(f"{folder}: {name} is not evidence", fix="Remove it, or make it again.") from None
        if about != subject.digest:
            raise UsageError(f"{folder}: {name} is about another {subject.record}", fix="Remove it, or make it again.")


def _find_calibration(artifact: Artifact) -> DataDigest | None:
    """Return the digest of the calibration images; None without any, or if they were generated."""
    quantized = artifact.manifest.quantized
    calibration = None if quantized is None else quantized.calibration
    if calibration is None or calibration.synthetic:
        return None
    return DataDigest(use="calibration", digest=calibration.digest, samples=calibration.images)


def _summarize(signed: Artifact | Family, key: PrivateKey, signatures: Mapping[str, _Signatures]) -> Signed:
    """Return the summary of all signatures, by the place of their folder: the empty one has all files."""

    def names(of: str) -> Iterator[str]:
        for place, each in sorted(signatures.items()):
            yield from (
                f"{place}{name}" for name in sorted(each.subject.evidence if of == "evidence" else each.contents)
            )

    return Signed(
        artifact=str(signed.path),
        key=key.public.fingerprint,
        files=len(signatures[""].subject.files),
        evidence=tuple(names("evidence")),
        verdict=signatures[""].verdict,
        written=tuple(names("contents")),
        next=f"vitdeploy verify {_locate(signed)} --key PUBLIC_KEY",
    )


def _locate(judged: Artifact | Family) -> str:
    """Return the words of a command that name the folder, and the one for evidence if it is another."""
    words = [str(judged.path)]
    if isinstance(judged, Artifact) and judged.evidence_folder is not None:
        words += ["--evidence", str(judged.evidence_folder)]
    return shlex.join(words)
