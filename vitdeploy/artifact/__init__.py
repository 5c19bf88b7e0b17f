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
    Record,
    Refusal,
    TargetRecord,
    TensorSpec,
    Trial,
)
from vitdeploy.artifact.staging import DISK_FULL, atomic_file, atomic_folder, refuse_existing
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Fact, FileEntry

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
    "Record",
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

FactT = TypeVar("FactT", bound=Fact)


@dataclass(frozen=True)
class Artifact:
    """A loaded folder. `digest` is the sha256 of its manifest: evidence names it."""

    path: Path
    manifest: Manifest
    digest: str

    @property
    def random_weights(self) -> bool:
        """Whether accuracy means nothing here."""
        return self.manifest.model.weights == "random"

    @property
    def deployed_bytes(self) -> int | None:
        """Of the files that the backend opens, weights beside the graph included; None in a bundle."""
        if self.manifest.runs is None:
            return None
        stem = PurePosixPath(self.manifest.runs).with_suffix("").as_posix()
        return sum(entry.bytes for entry in self.manifest.files if entry.path.startswith(f"{stem}."))

    def file(self, name: str) -> Path:
        """A file of the folder by its manifest name."""
        return self.path / name

    def read_evidence(self, kind: type[FactT]) -> tuple[FactT | None, str]:
        """The stored evidence of this kind, or None and why there is none that is about this manifest."""
        name = kind.__name__.lower()
        path = self.path / f"{name}.json"
        try:
            found = kind.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None, f"there is no {path.name}"
        except (OSError, ValidationError) as error:
            return None, f"{path.name} is not readable: {str(error).splitlines()[0]}"
        if getattr(found, "manifest", None) != self.digest:
            return None, f"{path.name} is about another manifest"
        return found, ""

    def write_evidence(self, evidence: Fact) -> None:
        """Store evidence beside the manifest, whole or not at all."""
        path = self.path / f"{type(evidence).__name__.lower()}.json"
        try:
            with atomic_file(path) as temporary:
                temporary.write_text(evidence.model_dump_json(indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ArtifactError(
                f"{path} cannot be written: {error.strerror}", fix="Free or unlock the folder."
            ) from None


def load(path: Path) -> Artifact:
    """The artifact or bundle at `path`, verified.

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
    for entry in manifest.files:
        _verify(path, entry)
    if manifest.runs is not None and manifest.runs not in {entry.path for entry in manifest.files}:
        raise ArtifactError(f"{path}: {manifest.runs!r} is not among its files", fix="Export it again.")
    return Artifact(path, manifest, hashlib.sha256(raw).hexdigest())


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file in `folder` and write its manifest; returns the manifest with the hashes."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    entries = tuple(
        FileEntry(path=p.relative_to(folder).as_posix(), bytes=p.stat().st_size, sha256=file_digest(p))
        for p in paths
        if p.relative_to(folder).as_posix() not in EVIDENCE
    )
    sealed = manifest.model_copy(update={"files": entries})
    (folder / MANIFEST).write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return sealed


def file_digest(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _parse_manifest(path: Path, raw: bytes) -> Manifest:
    try:
        version = json.loads(raw).get("schema_version")
    except (ValueError, AttributeError):
        raise ArtifactError(f"{path}/manifest.json is not a manifest", fix="Export it again.") from None
    if version != SCHEMA:
        fix = "Update vitdeploy." if isinstance(version, int) and version > SCHEMA else "Export it again."
        raise ArtifactError(f"{path} has manifest schema {version!r}, this vitdeploy reads {SCHEMA}", fix=fix)
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}/manifest.json: {where}: {first['msg']}", fix="Export it again.") from None


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
