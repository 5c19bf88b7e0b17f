"""The contents that a signature covers: files that never change, and evidence beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vitdeploy.artifact import EVIDENCE, MANIFEST, VERDICTS, Artifact
from vitdeploy.artifact.contents import digest_evidence, find_unlisted, read_plain
from vitdeploy.artifact.family import Family
from vitdeploy.artifact.layout import (
    ATTESTATION,
    BESIDE,
    FAMILY,
    MODEL_SIGNATURE,
    PAIR_EXAMPLES,
    RAW,
    RELEASE_SAMPLES,
    REPORT,
)
from vitdeploy.errors import ArtifactError

EVIDENCE_FILES = (*EVIDENCE, *RAW, REPORT)
"""The files that an attestation covers, as far as they are there."""
_OF_THE_GATE = ("gate.json", "release.json", RELEASE_SAMPLES)
JUDGED_FILES = tuple(name for name in (*EVIDENCE, *RAW) if name not in _OF_THE_GATE)
"""The files that a gate reads. The others it writes itself."""
_BESIDE_FAMILY = (*EVIDENCE_FILES, MODEL_SIGNATURE, ATTESTATION)
_LARGEST = 512 << 20  # the raw data of a million images


@dataclass(frozen=True)
class SignedSubject:
    """An artifact or a family, as signatures see it.

    Attributes:
        folder: its folder.
        record: the file that all others are listed in, manifest.json or family.json.
        digest: the sha256 of that file, which names the artifact or family.
        files: the sha256 of every file that never changes, the record included.
        ignored: the names that the signature of the files leaves out, whether or not they are there.
        evidence: the content of every piece of evidence, raw data and report that is there.
        signatures: the content of the signature and of the attestation, as far as they are there.
        parts: of a family: the same for each part.
        unlisted: of a family: what is in its folder and is none of these. An artifact with such a file is not loaded.
    """

    folder: Path
    record: str
    digest: str
    files: Mapping[str, str]
    ignored: tuple[str, ...]
    evidence: Mapping[str, bytes]
    signatures: Mapping[str, bytes]
    unlisted: tuple[str, ...] = ()
    parts: Mapping[str, SignedSubject] = field(default_factory=dict)

    @property
    def judged_digest(self) -> str:
        """The digest that a verdict about this evidence names; see `Artifact.evidence_digest`."""
        names = [name for name in (*EVIDENCE, *RAW) if name not in VERDICTS]
        files = {name: digest for name, digest in self.evidence_digests.items() if name in names}
        return digest_evidence(
            self.record, self.digest, files, {name: p.judged_digest for name, p in self.parts.items()}
        )

    @property
    def evidence_digests(self) -> dict[str, str]:
        """The sha256 of each piece of evidence."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.evidence.items()}


def of_artifact(artifact: Artifact) -> SignedSubject:
    """Return what signatures of an artifact or bundle are about. Its files were hashed when it was loaded.

    Raises:
        ArtifactError: a piece of evidence cannot be read.
    """
    return SignedSubject(
        artifact.path.resolve(),
        MANIFEST,
        artifact.digest,
        {MANIFEST: artifact.digest, **{entry.path: entry.sha256 for entry in artifact.manifest.files}},
        BESIDE,
        _read_beside(artifact, EVIDENCE_FILES),
        _read_beside(artifact, (MODEL_SIGNATURE, ATTESTATION)),
    )


def of_family(family: Family) -> SignedSubject:
    """Return what signatures of a family are about: all files of its parts too, and the evidence about the pair.

    Raises:
        ArtifactError: a piece of evidence cannot be read.
    """
    files = {FAMILY: family.digest, PAIR_EXAMPLES: family.record.examples}
    ignored = list(BESIDE)
    parts = {name: of_artifact(part) for name, part in family.parts.items()}
    for name, part in parts.items():
        files |= {f"{name}/{path}": digest for path, digest in part.files.items()}
        ignored += [f"{name}/{path}" for path in BESIDE]
    return SignedSubject(
        family.path.resolve(),
        FAMILY,
        family.digest,
        files,
        tuple(ignored),
        _read_plain(family.path, EVIDENCE_FILES),
        _read_plain(family.path, (MODEL_SIGNATURE, ATTESTATION)),
        # model-signing leaves out the files of Git, and all that a signature names as ignored.
        tuple(find_unlisted(family.path, (FAMILY, PAIR_EXAMPLES, *_BESIDE_FAMILY), tuple(family.parts))),
        parts,
    )


def find_changes(expected: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """Return a sentence for each file that was changed, removed or added: those of `expected` were signed."""
    changes = []
    for name in sorted({*expected, *present}):
        if name not in present:
            changes.append(f"{name} was removed since it was signed")
        elif name not in expected:
            changes.append(f"{name} was added and is not signed")
        elif present[name] != expected[name]:
            changes.append(f"{name} was changed since it was signed")
    return changes


def _read_beside(artifact: Artifact, names: tuple[str, ...]) -> dict[str, bytes]:
    contents = {}
    for name in names:
        content, reason = artifact.read_raw(name, _LARGEST)
        if content is not None:
            contents[name] = content
        elif not reason.startswith("there is no"):
            raise ArtifactError(f"{artifact.path}: {reason}", fix="Remove it, or make it again.")
    return contents


def _read_plain(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    contents = {}
    for name in names:
        try:
            contents[name] = read_plain(folder / name, _LARGEST)
        except FileNotFoundError:
            continue
    return contents
