"""A family: the artifacts of a model in several parts, and the file that says how they belong together.

`DIR/family.json` has the digests of the parts' manifests, and says which output feeds which input. `DIR/encoder` and
`DIR/decoder` are ordinary artifacts. `DIR/examples.npz` has images and prompts with the answers of the whole model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from vitdeploy import artifact as artifacts
from vitdeploy.artifact import EVIDENCE, VERDICTS, Artifact, EvidenceT, Parity
from vitdeploy.artifact.contents import check_in_place, digest_evidence, file_digest, read_plain
from vitdeploy.artifact.layout import FAMILY, PAIR_EXAMPLES, RAW
from vitdeploy.artifact.locks import locked
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Fact
from vitdeploy.frozen import replace
from vitdeploy.recipe import DECODER, ENCODER

SCHEMA = 1
NO_MEMORY = "none: each image is answered by itself; the memory that SAM 2 and EdgeTAM have for videos is not exported"
_LARGEST = 16 << 20
_LARGEST_EVIDENCE = 256 << 20
_AGAIN = "Export the family again."


class PartRecord(Fact):
    """A part: the sha256 of its manifest.json, its precision, and why it is another one than was asked for."""

    manifest: str
    precision: str
    reason: str = ""


class FamilyRecord(Fact):
    """The contents of family.json.

    Attributes:
        kind: "promptable": an image encoder, and a decoder that takes a prompt.
        model: the spec of the model.
        weights: their origin.
        parts: the parts by name.
        links: the output of the encoder that each input of the decoder takes, by the input's name.
        slots: the number of points that the decoder takes; a box is two.
        labels: the label of each kind of point.
        memory: what is remembered from one image to the next.
        graph_parity: the graphs of both parts in turn, computed by ONNX Runtime, against the whole model.
        parity: the compiled parts in turn against the whole model, for each kind of prompt; None where they cannot run.
        mask_iou: the mean intersection over union of the compiled pair's masks with the whole model's.
        doubts: reasons to distrust the numbers of the pair.
        examples: the sha256 of examples.npz.
    """

    schema_version: int = SCHEMA
    kind: Literal["promptable"] = "promptable"
    model: str
    weights: str
    parts: Mapping[str, PartRecord]
    links: Mapping[str, str]
    slots: int
    labels: Mapping[str, int]
    memory: str = NO_MEMORY
    graph_parity: Parity | None = None
    parity: Parity | None = None
    mask_iou: float | None = None
    doubts: tuple[str, ...] = ()
    examples: str = ""


@dataclass(frozen=True)
class Family:
    """A loaded family.

    Attributes:
        path: its folder.
        record: what family.json says.
        encoder: the artifact of the encoder.
        decoder: the artifact of the decoder.
        digest: the sha256 of family.json.
    """

    path: Path
    record: FamilyRecord
    encoder: Artifact
    decoder: Artifact
    digest: str

    @property
    def parts(self) -> dict[str, Artifact]:
        """The artifacts of the parts by name."""
        return {ENCODER: self.encoder, DECODER: self.decoder}

    def read_evidence(self, kind: type[EvidenceT]) -> tuple[EvidenceT | None, str]:
        """Return the stored evidence of this kind about the pair; or None, and the reason why there is none."""
        try:
            raw = read_plain(self.path / kind.file, _LARGEST_EVIDENCE)
            evidence = kind.model_validate_json(raw)
        except FileNotFoundError:
            return None, f"there is no {kind.file}"
        except (ArtifactError, OSError, ValueError) as error:
            return None, f"{kind.file} cannot be read: {str(error).splitlines()[0]}"
        if evidence.manifest != self.digest:
            return None, f"{kind.file} is about another family"
        return evidence, ""

    def read_raw(self, name: str, limit: int, digest: str) -> bytes | None:
        """Return a file beside family.json, if it has this sha256."""
        try:
            raw = read_plain(self.path / name, limit)
        except (ArtifactError, OSError):
            return None
        return raw if hashlib.sha256(raw).hexdigest() == digest else None

    def write_evidence(self, evidence: EvidenceT, raw: Mapping[str, bytes] | None = None) -> EvidenceT:
        """Store evidence about the pair beside family.json, with its digest. Raw data is written first.

        Raises:
            ArtifactError: a file cannot be written.
        """
        evidence = replace(evidence, manifest=self.digest)
        text = (evidence.model_dump_json(indent=1) + "\n").encode()
        self.write_beside({**(raw or {}), evidence.file: text})
        return evidence

    def write_beside(self, files: Mapping[str, bytes]) -> None:
        """Write files about the pair beside family.json, by name. Processes that write take turns.

        Raises:
            ArtifactError: a file cannot be written, or the family was replaced by another one meanwhile.
        """
        with locked(self.path / FAMILY):
            for name, content in files.items():
                try:
                    with artifacts.atomic_file(self.path / name) as temporary:
                        temporary.write_bytes(content)
                        self._check_in_place()
                except OSError as error:
                    self._check_in_place()
                    raise ArtifactError(
                        f"{self.path / name} cannot be written: {error.strerror}", fix="Make the folder writable."
                    ) from None

    def _check_in_place(self) -> None:
        """Raise an ArtifactError if another family has taken the place of this one."""
        check_in_place(self.path, FAMILY, self.digest, _LARGEST)

    def evidence_digest(self) -> str:
        """Return one sha256 over family.json and all evidence about the parts and the pair, except verdicts."""
        names = [name for name in (*EVIDENCE, *RAW) if name not in VERDICTS and (self.path / name).is_file()]
        files = {name: file_digest(self.path / name) for name in names}
        parts = {name: part.evidence_digest() for name, part in self.parts.items()}
        return digest_evidence(FAMILY, self.digest, files, parts)

    @property
    def examples(self) -> Path:
        """The file with images, prompts and answers."""
        return self.path / PAIR_EXAMPLES


def is_family(path: Path) -> bool:
    """Return True if a folder holds a family."""
    return (path / FAMILY).is_file()


def load_family(path: Path) -> Family:
    """Load a family and its parts, and check that they belong together.

    Raises:
        ArtifactError: a part is missing or damaged, or is not the one that the family was made with.
    """
    try:
        raw = read_plain(path / FAMILY, _LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path} has no {FAMILY}: it is not a family", fix="Export one.") from None
    record = _parse(path, raw)
    parts = {name: _load_part(path, name, record) for name in (ENCODER, DECODER)}
    _check_links(path, record, parts)
    if not (path / PAIR_EXAMPLES).is_file() or file_digest(path / PAIR_EXAMPLES) != record.examples:
        raise ArtifactError(f"{path}/{PAIR_EXAMPLES} is missing or was changed", fix=_AGAIN)
    return Family(path, record, parts[ENCODER], parts[DECODER], hashlib.sha256(raw).hexdigest())


def write_family(folder: Path, record: FamilyRecord) -> str:
    """Write family.json into a new folder, whose other files are written. Return its sha256."""
    raw = (record.model_dump_json(indent=1) + "\n").encode()
    (folder / FAMILY).write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


def _parse(path: Path, raw: bytes) -> FamilyRecord:
    try:
        record = FamilyRecord.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}/{FAMILY}: {where}: {first['msg']}", fix=_AGAIN) from None
    if record.schema_version != SCHEMA:
        raise ArtifactError(
            f"{path} has family schema {record.schema_version}, this version of vitdeploy reads {SCHEMA}",
            fix="Update vitdeploy." if record.schema_version > SCHEMA else _AGAIN,
        )
    if missing := sorted({ENCODER, DECODER} - set(record.parts)):
        raise ArtifactError(f"{path}/{FAMILY} names no {missing[0]}", fix=_AGAIN)
    return record


def _check_links(path: Path, record: FamilyRecord, parts: Mapping[str, Artifact]) -> None:
    """Check that family.json connects outputs and inputs that the parts have."""
    outputs = {f"{ENCODER}.{spec.name}" for spec in parts[ENCODER].manifest.outputs}
    inputs = {spec.name for spec in parts[DECODER].manifest.inputs}
    for name, output in record.links.items():
        if name not in inputs or output not in outputs:
            raise ArtifactError(
                f"{path}/{FAMILY} connects {output} with {name}, which the parts do not have", fix=_AGAIN
            )


def _load_part(path: Path, name: str, record: FamilyRecord) -> Artifact:
    folder = path / name
    if not folder.is_dir():
        other = DECODER if name == ENCODER else ENCODER
        raise ArtifactError(
            f"{path} has no {name}: the folder {folder} is missing, and a {other} alone answers nothing",
            fix=f"Put the {name} of this export back, or export the family again.",
        )
    artifact = artifacts.load(folder)
    part, spec = artifact.manifest.recipe.model.part, artifact.manifest.model.spec
    if part != name or artifact.digest != record.parts[name].manifest:
        what = f"the {part} of {spec}" if part else spec
        raise ArtifactError(
            f"{folder} is not the {name} that this family was made with: it is {what}, of another export",
            fix=f"Put the {name} of this export back. Parts of different models or exports do not fit each other.",
        )
    return artifact
