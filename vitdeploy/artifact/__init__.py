"""The folder on disk: a manifest, the files that it lists with their hashes, and the evidence beside them.

A folder appears complete or not at all: it is written beside its place, synced, then exchanged with what is there.
Loading verifies every hash. It refuses a wrong hash, an unknown schema, and a path that leaves the folder.
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
from vitdeploy.artifact.contents import (
    FileState,
    check_in_place,
    check_unchanged,
    digest_evidence,
    file_digest,
    read_plain,
    verify_contents,
)
from vitdeploy.artifact.layout import EVIDENCE, FAMILY, MANIFEST, RAW
from vitdeploy.artifact.locks import locked
from vitdeploy.artifact.manifest import (
    SCHEMA,
    Attempt,
    ExportRecord,
    FewerTokens,
    Manifest,
    ModelRecord,
    OutputParity,
    Parity,
    PassRecord,
    Placement,
    Refusal,
    TargetRecord,
    TensorSpec,
    Trial,
    Variant,
)
from vitdeploy.artifact.staging import (
    DISK_FULL,
    atomic_folder,
    recover,
    refuse_enclosed,
    refuse_existing,
    refuse_inside,
)
from vitdeploy.artifact.temporary import atomic_file
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Evidence, FileEntry
from vitdeploy.frozen import describe_unread, replace
from vitdeploy.recipe import ModelSpec

__all__ = [
    "DISK_FULL",
    "EVIDENCE",
    "MANIFEST",
    "SCHEMA",
    "VERDICTS",
    "Artifact",
    "Attempt",
    "ExportRecord",
    "FewerTokens",
    "Manifest",
    "ModelRecord",
    "OutputParity",
    "Parity",
    "PassRecord",
    "Placement",
    "Refusal",
    "TargetRecord",
    "TensorSpec",
    "Trial",
    "Variant",
    "atomic_file",
    "atomic_folder",
    "file_digest",
    "load",
    "refuse_enclosed",
    "refuse_existing",
    "refuse_inside",
    "seal",
]

_MAX_DIGITS = 20  # of 64 bits, with a sign
_LARGEST_MANIFEST = 64 << 20
_LARGEST_EVIDENCE = 256 << 20  # a bench keeps all samples
_LARGEST_RAW = 512 << 20  # eval.samples.npz of a million images
_UNWRITABLE = "Make the folder writable, free some space, or give another folder for it with --evidence DIR."

VERDICTS = ("gate.json",)
"""Evidence that contains the digest of the other evidence."""

EvidenceT = TypeVar("EvidenceT", bound=Evidence)


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact or bundle.

    Attributes:
        path: its folder.
        manifest: what its files are. It may come from anyone, so nothing that it names is trusted.
        digest: the sha256 of the manifest; evidence names the manifest by it.
        recipe_digest: the sha256 of the recipe as manifest.json has it, whatever keys a recipe has by now.
        model: the model as the user gave it, whose code may run; None if only the manifest names it.
        states: the state of each file when it was hashed; empty if the files were not hashed.
        evidence_folder: where evidence is written, and read from first; None: the artifact's own folder.
    """

    path: Path
    manifest: Manifest
    digest: str
    recipe_digest: str
    model: ModelSpec | None = None
    states: Mapping[str, FileState] = field(default_factory=dict, repr=False, compare=False)
    evidence_folder: Path | None = None

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

    def beside(self, name: str) -> Path:
        """Return the path at which a piece of evidence, its raw data or the report is written."""
        return (self.evidence_folder or self.path) / name

    def read_evidence(self, kind: type[EvidenceT]) -> tuple[EvidenceT | None, str]:
        """Return the stored evidence of this kind; or None, and the reason why there is none about this manifest."""
        content, reason = self.read_raw(kind.file, _LARGEST_EVIDENCE)
        if content is None:
            return None, reason
        try:
            evidence = kind.model_validate_json(content)
            json.loads(content, parse_int=_parse_int)
        except ValueError as error:  # pydantic's too
            return None, f"{kind.file} cannot be read: {str(error).splitlines()[0]}"
        if evidence.manifest != self.digest:
            return None, f"{kind.file} is about another manifest"
        return evidence, ""

    def read_raw(self, name: str, limit: int) -> tuple[bytes | None, str]:
        """Return a file beside the artifact, of at most `limit` bytes; or None, and the reason why there is none.

        The evidence folder comes first. What it does not have is read from the artifact's own folder.
        """
        for path in dict.fromkeys((self.beside(name), self.path / name)):
            try:
                return read_plain(path, limit), ""
            except (FileNotFoundError, NotADirectoryError):
                continue
            except ArtifactError as error:
                return None, error.message
            except OSError as error:
                return None, f"{name} cannot be read: {error.strerror or error}"
        return None, f"there is no {name}"

    def evidence_digest(self) -> str:
        """Return one sha256 over the manifest and all evidence and raw data beside it, except the verdict."""
        contents = {name: self.read_raw(name, _LARGEST_RAW)[0] for name in (*EVIDENCE, *RAW) if name not in VERDICTS}
        files = {name: hashlib.sha256(raw).hexdigest() for name, raw in contents.items() if raw is not None}
        return digest_evidence(MANIFEST, self.digest, files)

    def write_evidence(self, evidence: EvidenceT, raw: Mapping[str, bytes] | None = None) -> EvidenceT:
        """Store evidence, completely or not at all. Return it with the digest of the manifest.

        Args:
            evidence: a piece of evidence.
            raw: the raw data that it is computed from, by file name. It is written first, because the evidence names
                its sha256: if only the raw data was replaced, the older evidence does not fit it, and is refused.

        Raises:
            ArtifactError: a file cannot be written, or the artifact was replaced by another one meanwhile.
        """
        evidence = replace(evidence, manifest=self.digest)
        text = (evidence.model_dump_json(indent=1) + "\n").encode()
        self.write_beside({**(raw or {}), evidence.file: text})
        return evidence

    def write_beside(self, files: Mapping[str, bytes]) -> None:
        """Write files about this artifact beside it, by name. Processes that write take turns.

        Evidence never gets into another artifact than the one that it is about. A temporary file is made first, then
        the manifest is compared. If the folder is exchanged after that, the temporary file went with the older one.

        Raises:
            ArtifactError: a file cannot be written, or the artifact was replaced by another one meanwhile.
        """
        with locked(self.path / MANIFEST):
            for name, content in files.items():
                path = self.beside(name)
                try:
                    if self.evidence_folder is not None:
                        self.evidence_folder.mkdir(parents=True, exist_ok=True)
                    with atomic_file(path) as temporary:
                        temporary.write_bytes(content)
                        self._check_in_place()
                except OSError as error:
                    self._check_in_place()
                    raise ArtifactError(f"{path} cannot be written: {error.strerror}", fix=_UNWRITABLE) from None

    def _check_in_place(self) -> None:
        """Raise an ArtifactError if another artifact has taken the place of this one."""
        check_in_place(self.path, MANIFEST, self.digest, _LARGEST_MANIFEST)


def load(path: Path, *, verify: bool = True) -> Artifact:
    """Load the artifact or bundle at `path`.

    Args:
        path: its folder.
        verify: hash every file. False in a process whose parent has verified the folder.

    Raises:
        ArtifactError: there is no such folder, it is not an artifact, it has another schema, or a file differs from
            the manifest or is not listed in it.
    """
    if not path.exists():
        recover(path)
    try:
        raw = read_plain(path / MANIFEST, _LARGEST_MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        if (path / FAMILY).is_file():
            raise ArtifactError(
                f"{path} is a family of artifacts, and this takes one artifact",
                fix=f"Give {path}/encoder or {path}/decoder.",
            ) from None
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
    return Artifact(path, manifest, hashlib.sha256(raw).hexdigest(), _digest_recipe(raw), states=states)


def seal(folder: Path, manifest: Manifest) -> Artifact:
    """Hash every file in `folder`, write its manifest, and return the artifact."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    entries = tuple(
        FileEntry(path=p.relative_to(folder).as_posix(), bytes=p.stat().st_size, sha256=file_digest(p))
        for p in paths
        if p.relative_to(folder).as_posix() not in (*EVIDENCE, *RAW)
    )
    sealed = replace(manifest, files=entries)
    raw = (sealed.model_dump_json(indent=1) + "\n").encode()
    (folder / MANIFEST).write_bytes(raw)
    return Artifact(folder, sealed, hashlib.sha256(raw).hexdigest(), _digest_recipe(raw))


def _digest_recipe(manifest: bytes) -> str:
    recipe = json.loads(manifest)["recipe"]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _parse_int(text: str) -> int:
    """Parse an integer of JSON. Those with hundreds of digits are no measurements, and no float can hold them.

    Raises:
        ValueError: it has too many digits.
    """
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _parse_manifest(path: Path, raw: bytes) -> Manifest:
    try:
        facts = json.loads(raw, parse_int=_parse_int)
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
        raise ArtifactError(f"{path}/manifest.json: {describe_unread(error)}", fix="Export it again.") from None
    except ValueError as error:  # from `schema1.upgrade`
        raise ArtifactError(f"{path}/manifest.json of schema 1: {error}", fix="Export it again.") from None
