"""The folder on disk: a manifest, the files that it lists with their hashes, and the evidence beside them.

A folder appears complete or not at all: it is written beside its place, synced, then renamed. Loading verifies every
hash. It refuses a wrong hash, an unknown schema, and a path that leaves the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from vitdeploy.artifact import schema1
from vitdeploy.artifact.contents import FileState, check_unchanged, file_digest, read_plain, verify_contents
from vitdeploy.artifact.layout import EVIDENCE, MANIFEST
from vitdeploy.artifact.manifest import (
    SCHEMA,
    Attempt,
    ExportRecord,
    Manifest,
    ModelRecord,
    Parity,
    PassRecord,
    Placement,
    Refusal,
    TargetRecord,
    TensorSpec,
    Trial,
)
from vitdeploy.artifact.staging import DISK_FULL, atomic_file, atomic_folder, refuse_existing
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Evidence, FileEntry
from vitdeploy.frozen import replace
from vitdeploy.recipe import ModelSpec

__all__ = [
    "DISK_FULL",
    "EVIDENCE",
    "MANIFEST",
    "SCHEMA",
    "Artifact",
    "Attempt",
    "ExportRecord",
    "Manifest",
    "ModelRecord",
    "Parity",
    "PassRecord",
    "Placement",
    "Refusal",
    "TargetRecord",
    "TensorSpec",
    "Trial",
    "atomic_file",
    "atomic_folder",
    "file_digest",
    "load",
    "refuse_existing",
    "seal",
]

_LARGEST_MANIFEST = 64 << 20
_LARGEST_EVIDENCE = 256 << 20  # a bench keeps all samples

EvidenceT = TypeVar("EvidenceT", bound=Evidence)


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact or bundle.

    Attributes:
        path: its folder.
        manifest: what its files are. It may come from anyone, so nothing that it names is trusted.
        digest: the sha256 of the manifest; evidence names the manifest by it.
        model: the model as the user gave it, whose code may run; None if only the manifest names it.
        states: the state of each file when it was hashed; empty if the files were not hashed.
    """

    path: Path
    manifest: Manifest
    digest: str
    model: ModelSpec | None = None
    states: Mapping[str, FileState] = field(default_factory=dict, repr=False, compare=False)

    @property
    def random_weights(self) -> bool:
        """True if the weights are random, so that accuracy means nothing."""
        return self.manifest.model.weights == "random"

    def file(self, name: str) -> Path:
        """Return the path of a file by its name in the manifest."""
        return self.path / name

    def check_unchanged(self) -> None:
        """Check that the files are still those that were hashed. Call it when an engine has opened them.

        Raises:
            ArtifactError: a file was changed or replaced.
        """
        check_unchanged(self.path, self.states)

    def read_evidence(self, kind: type[EvidenceT]) -> tuple[EvidenceT | None, str]:
        """Return the stored evidence of this kind; or None, and the reason why there is none about this manifest."""
        path = self.path / kind.file
        try:
            evidence = kind.model_validate_json(read_plain(path, _LARGEST_EVIDENCE))
        except FileNotFoundError:
            return None, f"there is no {path.name}"
        except (OSError, ArtifactError, ValidationError) as error:
            return None, f"{path.name} cannot be read: {str(error).splitlines()[0]}"
        if evidence.manifest != self.digest:
            return None, f"{path.name} is about another manifest"
        return evidence, ""

    def write_evidence(self, evidence: EvidenceT) -> EvidenceT:
        """Store evidence in the folder, completely or not at all. Return it with the digest of the manifest.

        Raises:
            ArtifactError: the file cannot be written.
        """
        evidence = replace(evidence, manifest=self.digest)
        path = self.path / evidence.file
        try:
            with atomic_file(path) as temporary:
                temporary.write_text(evidence.model_dump_json(indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ArtifactError(
                f"{path} cannot be written: {error.strerror}", fix="Make the folder writable, or free some space."
            ) from None
        return evidence


def load(path: Path, *, verify: bool = True) -> Artifact:
    """Load the artifact or bundle at `path`.

    Args:
        path: its folder.
        verify: hash every file. False in a process whose parent has verified the folder.

    Raises:
        ArtifactError: there is no such folder, it is not an artifact, it has another schema, or a file differs from
            the manifest or is not listed in it.
    """
    try:
        raw = read_plain(path / MANIFEST, _LARGEST_MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        reason = "has no manifest.json" if path.exists() else "does not exist"
        raise ArtifactError(
            f"{path} {reason}: it is not an artifact", fix="Make one with `vitdeploy export`."
        ) from None
    manifest = _parse_manifest(path, raw)
    states = verify_contents(path, manifest.files) if verify else {}
    if manifest.runs is not None and manifest.runs not in {entry.path for entry in manifest.files}:
        raise ArtifactError(
            f"{path}: the manifest names {manifest.runs!r} as the file to run, but does not list it",
            fix="Export it again.",
        )
    return Artifact(path, manifest, hashlib.sha256(raw).hexdigest(), states=states)


def seal(folder: Path, manifest: Manifest) -> Artifact:
    """Hash every file in `folder`, write its manifest, and return the artifact."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    entries = tuple(
        FileEntry(path=p.relative_to(folder).as_posix(), bytes=p.stat().st_size, sha256=file_digest(p))
        for p in paths
        if p.relative_to(folder).as_posix() not in EVIDENCE
    )
    sealed = replace(manifest, files=entries)
    raw = (sealed.model_dump_json(indent=1) + "\n").encode()
    (folder / MANIFEST).write_bytes(raw)
    return Artifact(folder, sealed, hashlib.sha256(raw).hexdigest())


def _parse_manifest(path: Path, raw: bytes) -> Manifest:
    try:
        facts = json.loads(raw)
        version = facts.get("schema_version")
    except (ValueError, AttributeError, RecursionError):
        raise ArtifactError(f"{path}/manifest.json is not a manifest", fix="Export it again.") from None
    if version not in (1, SCHEMA):
        fix = "Update vitdeploy." if isinstance(version, int) and version > SCHEMA else "Export it again."
        raise ArtifactError(
            f"{path} has manifest schema {version!r}, this version of vitdeploy reads 1 to {SCHEMA}", fix=fix
        )
    try:
        if version == 1:
            raw = json.dumps(schema1.upgrade(facts)).encode()
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}/manifest.json: {where}: {first['msg']}", fix="Export it again.") from None
    except ValueError as error:  # from `schema1.upgrade`
        raise ArtifactError(f"{path}/manifest.json of schema 1: {error}", fix="Export it again.") from None
