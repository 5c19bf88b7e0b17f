"""The attestation of the evidence: a signed in-toto statement about an artifact, in a DSSE envelope.

    subject        manifest.json (or family.json) by its sha256, which lists all files of the artifact
    predicate      the sha256 of each piece of evidence, raw data and report; the verdict with its limits and checks;
                   the digests of the data; the machines and libraries that the evidence was made with

Formats: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, and
https://github.com/secure-systems-lab/dsse. The library securesystemslib signs and verifies the envelope.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from vitdeploy.artifact.layout import ATTESTATION
from vitdeploy.commands.signing.keys import PrivateKey, PublicKey
from vitdeploy.commands.signing.subject import SignedSubject, find_changes
from vitdeploy.errors import UsageError
from vitdeploy.evidence import Bench, Eval, Evidence, Gate, Measured, Release, Sensitivity, Status, StreamTuning
from vitdeploy.evidence.audit import Audit
from vitdeploy.frozen import describe_unread
from vitdeploy.version import __version__

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://vitdeploy/evidence/v1"
"""A name, not an address: as that of model-signing's own predicate."""
_KINDS: tuple[type[Evidence], ...] = (Audit, Bench, Eval, Gate, Release, Sensitivity, StreamTuning)


class _Part(BaseModel):
    """A part of a statement. Keys are in lowerCamelCase, and unknown ones are ignored, as in-toto asks."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Descriptor(_Part):
    """A file by its name and digests."""

    name: str
    digest: Mapping[str, str]


class JudgedCheck(_Part):
    """A check of the gate, without its reasons."""

    name: str
    status: Status
    observed: float | str | None
    limit: float | str


class DataDigest(_Part):
    """The digest of data, the number of its samples, and what they were used for.

    "comparison" is that with an earlier model (`gate --data`).
    """

    use: Literal["evaluation", "comparison", "calibration"]
    digest: str
    samples: int


class Environment(_Part):
    """The machine and the software that a piece of evidence was made with: see `evidence.Provenance`."""

    evidence: str
    machine: str
    hardware: str
    engine: str
    versions: Mapping[str, str]
    threads: int | None
    date: str
    recipe: str


class Predicate(_Part):
    """The facts about an artifact that a key vouches for. `verdict` is None if there was none."""

    vitdeploy: str
    evidence: tuple[Descriptor, ...]
    verdict: Status | None
    evidence_digest: str
    limits: Mapping[str, float | str]
    checks: tuple[JudgedCheck, ...]
    data: tuple[DataDigest, ...]
    environment: tuple[Environment, ...]


class Statement(_Part):
    """An in-toto statement of version 1."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type", default="https://in-toto.io/Statement/v1")
    subject: tuple[Descriptor, ...]
    predicate_type: Literal["https://vitdeploy/evidence/v1"] = "https://vitdeploy/evidence/v1"
    predicate: Predicate


def describe(subject: SignedSubject, calibration: DataDigest | None) -> Statement:
    """Return the statement about the evidence of a subject.

    Raises:
        UsageError: a piece of evidence is not one.
    """
    pieces: dict[str, Any] = {}
    for kind in _KINDS:
        if kind.file not in subject.evidence:
            continue
        try:
            pieces[kind.file] = kind.model_validate_json(subject.evidence[kind.file])
        except ValidationError as error:
            raise UsageError(
                f"{subject.folder}: {kind.file} is not evidence: {describe_unread(error)}",
                fix="Remove it, or make it again.",
            ) from None
    verdict = pieces.get(Gate.file)
    evidence = [Descriptor(name=name, digest={"sha256": value}) for name, value in subject.evidence_digests.items()]
    predicate = Predicate(
        vitdeploy=__version__,
        evidence=tuple(sorted(evidence, key=lambda item: item.name)),
        verdict=None if verdict is None else verdict.verdict,
        evidence_digest="" if verdict is None else verdict.digest,
        limits={} if verdict is None else verdict.limits,
        checks=() if verdict is None else tuple(
            JudgedCheck(name=check.name, status=check.status, observed=check.observed, limit=check.limit)
            for check in verdict.checks
        ),
        data=tuple(_list_data(pieces, calibration)),
        environment=tuple(_list_environments(pieces)),
    )  # fmt: skip
    return Statement(subject=(Descriptor(name=subject.record, digest={"sha256": subject.digest}),), predicate=predicate)


def sign_statement(statement: Statement, key: PrivateKey) -> bytes:
    """Return the content of the attestation: the statement in a signed envelope."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    envelope = Envelope(statement.model_dump_json(by_alias=True).encode(), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(key.key))
    return (json.dumps(envelope.to_dict(), indent=1) + "\n").encode()


def explain_evidence(
    subject: SignedSubject, key: PublicKey, judged: Collection[str] | None = None
) -> tuple[Predicate | None, list[str]]:
    """Return the facts that `key` vouches for, and why the evidence is not what it signed, a sentence for each reason.

    Args:
        subject: the artifact or family.
        key: the public key.
        judged: the only files that have to be as they were signed; None: all.
    """
    content = subject.signatures.get(ATTESTATION)
    if content is None:
        return None, [f"there is no {ATTESTATION}: its evidence is not signed"]
    payload, reason = _open_envelope(content, key)
    if payload is None:
        return None, [reason]
    try:
        statement = Statement.model_validate_json(payload)
    except ValidationError:
        return None, [f"{ATTESTATION} is signed, but is no statement about evidence that this vitdeploy reads"]
    if subject.digest not in {item.digest.get("sha256") for item in statement.subject if item.name == subject.record}:
        return None, [f"{ATTESTATION} is about another artifact: its {subject.record} is another one"]
    signed = {item.name: item.digest.get("sha256", "") for item in statement.predicate.evidence}
    present = subject.evidence_digests
    if judged is not None:
        signed = {name: digest for name, digest in signed.items() if name in judged}
        present = {name: digest for name, digest in present.items() if name in judged}
    return statement.predicate, find_changes(signed, present)


def _open_envelope(content: bytes, key: PublicKey) -> tuple[bytes | None, str]:
    """Return the payload of an envelope that `key` signed; or None, and the reason."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import FormatError, VerificationError
    from securesystemslib.signer import SSlibKey

    try:
        envelope = Envelope.from_dict(json.loads(content))
        is_statement = envelope.payload_type == PAYLOAD_TYPE
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FormatError):
        is_statement = False
    if not is_statement:
        return None, f"{ATTESTATION} is not a signed statement"
    public = SSlibKey.from_crypto(key.key)
    if public.keyid not in envelope.signatures:
        return None, f"{ATTESTATION} was made with another key"
    try:
        envelope.verify([public], 1)
    except VerificationError:
        return None, f"{ATTESTATION} was changed after it was signed: this key did not make the signature in it"
    return envelope.payload, ""


def _list_data(pieces: Mapping[str, Any], calibration: DataDigest | None) -> list[DataDigest]:
    digests = [] if calibration is None else [calibration]
    if (evaluation := pieces.get(Eval.file)) is not None and evaluation.data_digest:
        digests.append(DataDigest(use="evaluation", digest=evaluation.data_digest, samples=evaluation.n))
    if (release := pieces.get(Release.file)) is not None:
        digests.append(DataDigest(use="comparison", digest=release.data_digest, samples=release.n))
    return digests


def _list_environments(pieces: Mapping[str, Any]) -> list[Environment]:
    environments = []
    for name, piece in sorted(pieces.items()):
        if isinstance(piece, Measured) and piece.provenance is not None:
            environments.append(Environment(evidence=name, **piece.provenance.model_dump()))
    return environments
