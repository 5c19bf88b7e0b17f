"""The folder on disk: a manifest, the files it vouches for, and the evidence beside them.

A folder appears whole or not at all: it is written beside its place, synced, then renamed. Loading verifies every
hash and refuses a mismatch, an unknown schema and a path that leaves the folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vitdeploy.environment import Host
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Fact, FileEntry
from vitdeploy.recipe import Preprocess, Recipe

SCHEMA = 1
MANIFEST = "manifest.json"
EVIDENCE = ("audit.json", "bench.json", "eval.json", "gate.json")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_BELOW_BYTES = 1 << 20  # a disk with less free than this is why a library failed to write, whatever it says

FactT = TypeVar("FactT", bound=Fact)


class Record(BaseModel):
    """A part of the manifest."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TensorSpec(Record):
    """A graph input or output; a dimension that varies is given by name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class ModelRecord(Record):
    """Where the model came from. `weights` is "pretrained", "random" or "file"; `digest` covers every tensor of it."""

    spec: str
    weights: Literal["pretrained", "random", "file", "own"]
    digest: str
    parameters: int


class Parity(Record):
    """How far the graph is from the reference on the same input."""

    max_abs: float
    reference_max: float
    cosine: float
    finite: bool
    batches: tuple[int, ...]


class Attempt(Record):
    """An exporter that failed, and what it said."""

    exporter: str
    error: str


class ExportRecord(Record):
    """Which exporter made the graph, what failed before it, and how the numbers compare."""

    exporter: str
    opset: int
    fallbacks: tuple[Attempt, ...] = ()
    parity: Parity


class Refusal(Record):
    """A place where a pass could not fire, and why."""

    site: str
    reason: str


class PassRecord(Record):
    """How often a pass fired, and where it refused."""

    name: str
    fired: int
    refused: tuple[Refusal, ...] = ()


class TargetRecord(Record):
    """What the graph was compiled by and where; `backend` is None in a bundle."""

    kind: str
    device: str
    precision: str
    backend: str | None = None
    host: Host | None = None


class Manifest(Record):
    """Everything that is known about the folder."""

    schema_version: int = SCHEMA
    stage: Literal["bundle", "artifact"]
    model: ModelRecord
    recipe: Recipe
    recipe_digest: str
    export: ExportRecord
    passes: tuple[PassRecord, ...]
    quantized: Mapping[str, str] = {}
    """What quantization did: method, data and its digest, what stayed in float and by which rule."""
    graph_parity: Parity | None = None
    """The target-ready graph against the reference, where this machine can run it; quantization is part of it."""
    target: TargetRecord
    preprocess: Preprocess
    labels: tuple[str, ...] | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runs: str | None = None
    """The file that the backend opens; None in a bundle."""
    versions: Mapping[str, str]
    files: tuple[FileEntry, ...] = ()


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


def refuse_existing(out: Path, *, force: bool) -> None:
    """Refuse an output folder that exists, before any work is done; `force` only replaces what vitdeploy made.

    Raises:
        ArtifactError: the folder exists and may not be replaced.
    """
    blocking = next((p for p in out.absolute().parents if p.exists() and not p.is_dir()), None)
    if blocking is not None:
        raise ArtifactError(f"{out} cannot be a folder: {blocking} is a file", fix="Use -o elsewhere.")
    if not os.path.lexists(out):
        return
    if not force:
        raise ArtifactError(f"{out} exists", fix="Use --force to replace it, or -o for another folder.")
    if out.is_mount():
        raise ArtifactError(f"{out} is a mount point, which cannot be replaced", fix=f"Use -o {out}/NAME.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).exists()):
        raise ArtifactError(
            f"{out} exists and is not an artifact", fix="--force replaces artifacts only; use another -o."
        )


@contextmanager
def staged(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A new folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    Raises:
        ArtifactError: `out` exists (see `refuse_existing`), or the disk is full.
    """
    out = out.absolute()
    refuse_existing(out, force=force)
    made = _make_parents(out.parent)
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        folder.chmod(0o755)  # mkdtemp's 0700 would keep a CI user from reading what another user exported
        yield folder
        _sync(folder)
        _replace(folder, out)
    except BaseException as error:
        full = _disk_full(error, out.parent)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if full:
            raise ArtifactError(
                f"the disk of {out.parent} is full", fix="Free some space, or use -o elsewhere."
            ) from error
        if isinstance(error, PermissionError):
            raise ArtifactError(f"{error.filename} may not be written", fix="Use -o for a folder of yours.") from None
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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


def _make_parents(folder: Path) -> list[Path]:
    """Create `folder`; those that did not exist are returned, innermost first."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be created: {error.strerror}", fix="Use -o elsewhere.") from None
    return missing


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or path == folder:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _replace(folder: Path, out: Path) -> None:
    """Put `folder` in the place of `out`; the old one goes only after the new one stands."""
    if not out.exists():
        folder.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    try:
        out.rename(old / out.name)
        folder.rename(out)
    except BaseException:
        if not out.exists():
            (old / out.name).rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _disk_full(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    return isinstance(error, Exception) and shutil.disk_usage(folder).free < _FULL_BELOW_BYTES
