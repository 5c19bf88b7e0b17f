"""The document: the model with its card, its files, its data, and the libraries that made and measured it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vitdeploy.artifact import MANIFEST, Artifact, atomic_file, refuse_inside
from vitdeploy.commands.bom.licences import find_library_licence, name_licence
from vitdeploy.commands.bom.model_card import describe_model
from vitdeploy.commands.gate.evidence import Judged, read_evidence
from vitdeploy.errors import UsageError
from vitdeploy.evidence import Measured
from vitdeploy.version import __version__

_SCHEMA, _SPEC = "http://cyclonedx.org/schema/bom-1.6.schema.json", "1.6"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL, _SOURCE = "model", "source-model"
_LICENSED = ("library", "machine-learning-model")
"""Components that have a licence."""


class BillOfMaterials(BaseModel):
    """A bill of materials.

    Attributes:
        file: the file that it was written to; None if it was printed.
        serial: its serial number, which follows from the contents.
        components: the number of components, without the model itself.
        unlicensed: the libraries and models whose licence is not known here.
        document: the document itself; None if it is in `file`.
    """

    model_config = ConfigDict(frozen=True)
    file: str | None
    serial: str
    components: int
    unlicensed: tuple[str, ...]
    document: Mapping[str, Any] | None


def make_bom(artifact: Artifact, out: Path | None = None) -> BillOfMaterials:
    """Return the bill of materials of an artifact or bundle, and write it to a file if one is given.

    Raises:
        UsageError: the file is inside the artifact, or cannot be written.
    """
    if out is not None:
        _check_place(out, artifact)
    document = write_document(artifact, read_evidence(artifact, store=False))
    if out is not None:
        text = (json.dumps(document, indent=1) + "\n").encode()
        try:
            with atomic_file(out) as temporary:
                temporary.write_bytes(text)
        except OSError as error:
            raise UsageError(f"{out} cannot be written: {error.strerror}", fix="Choose another file with -o.") from None
    named = [document["metadata"]["component"]["pedigree"]["ancestors"][0], *document["components"]]
    return BillOfMaterials(
        file=None if out is None else str(out),
        serial=document["serialNumber"],
        components=len(document["components"]),
        unlicensed=tuple(item["name"] for item in named if item["type"] in _LICENSED and "licenses" not in item),
        document=document if out is None else None,
    )  # fmt: skip


def write_document(artifact: Artifact, evidence: Judged) -> dict[str, Any]:
    """Return the document. It has no date, so that the same contents give the same document."""
    data = [*_list_data(artifact, evidence)]
    components = [*_list_files(artifact), *data, *_list_libraries(artifact, evidence)]
    references = [component["bom-ref"] for component in components]
    model = _describe_artifact(artifact)
    model["modelCard"] = describe_model(artifact, evidence, [component["bom-ref"] for component in data])
    body = {
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "vitdeploy", "version": __version__}]},
            "component": model,
        },
        "components": components,
        "dependencies": [{"ref": _MODEL, "dependsOn": references}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(body, sort_keys=True))
    return {
        "$schema": _SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": _SPEC,
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        **body,
    }


def _describe_artifact(artifact: Artifact) -> dict[str, Any]:
    """Return the artifact as a component, with the model that it was made of as its ancestor."""
    manifest = artifact.manifest
    licences = name_licence(manifest.model.license)
    licensed = {"licenses": licences} if licences else {}
    source = {
        "type": "machine-learning-model",
        "bom-ref": _SOURCE,
        "name": manifest.model.spec,
        "description": "The model before export. Its digest is over all tensors of its weights.",
        **_hash(manifest.model.digest),
        **licensed,
    }
    made_for = f"{manifest.target.kind}, {manifest.target.precision}"
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": manifest.model.spec,
        "version": artifact.digest[:12],
        "description": f"{manifest.stage} for {made_for}. Its digest is that of {MANIFEST}, which lists all files.",
        **_hash(artifact.digest),
        **licensed,
        "pedigree": {"ancestors": [source], "notes": f"exported by vitdeploy {manifest.versions.get('vitdeploy', '')}"},
    }


def _list_files(artifact: Artifact) -> Iterator[dict[str, Any]]:
    for entry in artifact.manifest.files:
        yield {"type": "file", "bom-ref": f"file:{entry.path}", "name": entry.path, **_hash(entry.sha256)}


def _list_data(artifact: Artifact, evidence: Judged) -> Iterator[dict[str, Any]]:
    """Yield the data of calibration and evaluation. Only digests are known of it, and the number of its samples."""
    quantized, evaluation = artifact.manifest.quantized, evidence.evaluation
    calibration = None if quantized is None else quantized.calibration
    if calibration is not None and not calibration.synthetic:
        yield _describe_data("calibration", calibration.digest, calibration.images)
    if evaluation is not None and evaluation.data_digest:
        yield _describe_data("evaluation", evaluation.data_digest, evaluation.n)


def _describe_data(use: str, digest: str, samples: int) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": f"data:{use}",
        "name": f"{use} data",
        "description": f"{samples} samples",
        **_hash(digest),
        "data": [{"type": "dataset", "name": f"{use} data"}],
    }


def _list_libraries(artifact: Artifact, evidence: Judged) -> Iterator[dict[str, Any]]:
    """Yield each version of a library that exported, compiled or measured the artifact."""
    pieces = (evidence.stored.audit, evidence.bench, evidence.evaluation)
    origins = [piece.provenance for piece in pieces if isinstance(piece, Measured) and piece.provenance is not None]
    versions = {*artifact.manifest.versions.items(), *(item for origin in origins for item in origin.versions.items())}
    for name, version in sorted(versions):
        purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version.replace('+', '%2B')}"
        licences = find_library_licence(name, version)
        yield {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": version,
            **({"licenses": licences} if licences else {}),
            "purl": purl,
        }


def _hash(digest: str) -> dict[str, Any]:
    """Return the hashes of a component; none if the digest is not a sha256, as of an older vitdeploy."""
    return {"hashes": [{"alg": "SHA-256", "content": digest}]} if _SHA256.fullmatch(digest) else {}


def _check_place(out: Path, artifact: Artifact) -> None:
    """Refuse a file that cannot be written, or that would be an unlisted file of the artifact."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder", fix="Give a file with -o.")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}", fix="Create it, or choose another file with -o.")
    refuse_inside(out, artifact.path)
