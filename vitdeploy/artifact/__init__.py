"""The folder on disk: a manifest, the files it vouches for, and the evidence beside them.

A folder appears whole or not at all: it is written beside its place, synced, then renamed. Loading verifies every
hash and refuses a mismatch, an unknown schema and a path that leaves the folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import ValidationError

from vitdeploy.artifact import schema1
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

EvidenceT = TypeVar("EvidenceT", bound=Evidence)


@dataclass(frozen=True)
class Artifact:
    """A folder that was loaded, or sealed just now. `digest` is the sha256 of its manifest: evidence names it."""

    path: Path
    manifest: Manifest
    digest: str

    @property
    def random_weights(self) -> bool:
        """Return whether accuracy means nothing here."""
        return self.manifest.model.weights == "random"

    def file(self, name: str) -> Path:
        """Return the path of a file by its name in the manifest."""
        return self.path / name

    def read_evidence(self, kind: type[EvidenceT]) -> tuple[EvidenceT | None, str]:
        """Return the stored evidence of this kind; or None, and why there is none about this manifest."""
        path = self.path / kind.file
        try:
            evidence = kind.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None, f"there is no {path.name}"
        except (OSError, ValidationError) as error:
            return None, f"{path.name} is not readable: {str(error).splitlines()[0]}"
        if evidence.manifest != self.digest:
            return None, f"{path.name} is about another manifest"
        return evidence, ""

    def write_evidence(self, evidence: EvidenceT) -> EvidenceT:
        """Store evidence in the folder, whole or not at all; return it with the digest of the manifest.

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
                f"{path} cannot be written: {error.strerror}", fix="Free or unlock the folder."
            ) from None
        return evidence


def load(path: Path, *, verify: bool = True) -> Artifact:
    """Load the artifact or bundle at `path`.

    Args:
        path: its folder.
        verify: whether every file is hashed; a process that was started by one that did need not do it again.

    Raises:
        ArtifactError: no such folder, not an artifact, another schema, or a file that is not what the manifest says.
    """
    try:
        raw = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        what = "has no manifest.json" if path.exists() else "does not exist"
        raise ArtifactError(f"{path} {what}: it is not an artifact", fix="Make one with `vitdeploy export`.") from None
    except OSError as error:
        raise ArtifactError(f"{path}/{MANIFEST} cannot be read: {error.strerror}", fix="Unlock the folder.") from None
    manifest = _parse_manifest(path, raw)
    if verify:
        for entry in manifest.files:
            _verify(path, entry)
    if manifest.runs is not None and manifest.runs not in {entry.path for entry in manifest.files}:
        raise ArtifactError(f"{path}: {manifest.runs!r} is not among its files", fix="Export it again.")
    return Artifact(path, manifest, hashlib.sha256(raw).hexdigest())


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


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _parse_manifest(path: Path, raw: bytes) -> Manifest:
    try:
        facts = json.loads(raw)
        version = facts.get("schema_version")
    except (ValueError, AttributeError):
        raise ArtifactError(f"{path}/manifest.json is not a manifest", fix="Export it again.") from None
    if version not in (1, SCHEMA):
        fix = "Update vitdeploy." if isinstance(version, int) and version > SCHEMA else "Export it again."
        raise ArtifactError(f"{path} has manifest schema {version!r}, this vitdeploy reads 1 to {SCHEMA}", fix=fix)
    try:
        if version == 1:
            raw = json.dumps(schema1.upgrade(facts)).encode()
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}/manifest.json: {where}: {first['msg']}", fix="Export it again.") from None
    except ValueError as error:  # of schema 1
        raise ArtifactError(f"{path}/manifest.json of schema 1: {error}", fix="Export it again.") from None


def _verify(folder: Path, entry: FileEntry) -> None:
    name = PurePosixPath(entry.path)
    file = folder / name
    if name.is_absolute() or ".." in name.parts or not file.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder}: {entry.path!r} leaves the folder", fix="Do not use it: it was tampered with.")
    if not file.is_file():
        raise ArtifactError(f"{folder}: {entry.path} is missing", fix="Copy the whole folder, or export it again.")
    try:
        intact = file.stat().st_size == entry.bytes and file_digest(file) == entry.sha256
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror}", fix="Unlock the folder.") from None
    if not intact:
        raise ArtifactError(
            f"{folder}: {entry.path} is not the file that was exported", fix="Copy it again, or export again."
        )
