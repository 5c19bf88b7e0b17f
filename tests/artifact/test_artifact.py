"""A folder appears whole or not at all, and is read only if it is what was written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evidence import audit, bench
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import (
    EVIDENCE,
    MANIFEST,
    SCHEMA,
    ExportRecord,
    Manifest,
    ModelRecord,
    Parity,
    TargetRecord,
    TensorSpec,
    staging,
)
from vitdeploy.artifact.layout import FAMILY
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.evidence import Audit, Bench
from vitdeploy.recipe import Preprocess, Recipe

FILES = {"graph.onnx": b"graph", "reference/example.npz": b"example", "model.onnx": b"model"}


def manifest(**more: Any) -> Manifest:
    recipe = Recipe.model_validate({"model": "demo:digits", "target": {"kind": "onnxruntime"}})
    parity = Parity(max_abs=0.0, reference_max=1.0, cosine=1.0, finite=True, batches=(1,))
    facts: dict[str, Any] = {
        "stage": "artifact",
        "model": ModelRecord(spec="demo:digits", weights="pretrained", digest="d", parameters=1),
        "recipe": recipe,
        "recipe_digest": recipe.digest,
        "export": ExportRecord(exporter="dynamo", opset=23, parity=parity),
        "passes": (),
        "target": TargetRecord(kind="onnxruntime", device="CPU", precision="fp32"),
        "preprocess": Preprocess(size=(32, 32)),
        "inputs": (TensorSpec(name="input", dtype="float", shape=("batch", 3, 32, 32)),),
        "outputs": (TensorSpec(name="output", dtype="float", shape=("batch", 10)),),
        "runs": "model.onnx",
        "versions": {"numpy": "2"},
    }
    return Manifest(**facts | more)


def write(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    artifacts.seal(folder, manifest())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "a")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    change(raw)
    (folder / MANIFEST).write_text(json.dumps(raw))


def fail(out: Path, error: BaseException, *, force: bool = False) -> None:
    """Write a whole artifact, and fail."""
    with artifacts.atomic_folder(out, force=force) as inside:
        write(inside)
        raise error


def left_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_what_is_sealed_loads_as_it_was(folder: Path) -> None:
    found = artifacts.load(folder)
    assert found.manifest.model_copy(update={"files": ()}) == manifest()
    assert {e.path: e.bytes for e in found.manifest.files} == {name: len(data) for name, data in FILES.items()}
    assert artifacts.load(folder).digest == found.digest


def test_evidence_is_outside_of_the_hashed_set(folder: Path) -> None:
    found = artifacts.load(folder)
    for name in EVIDENCE:
        (folder / name).write_text("{}")
    artifacts.seal(folder, manifest())
    assert artifacts.load(folder).digest == found.digest


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused_by_name(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[0] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name} is not the file that was exported"):
        artifacts.load(folder)


def test_a_missing_file_is_refused_by_name(folder: Path) -> None:
    (folder / "graph.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"graph\.onnx is missing"):
        artifacts.load(folder)


def test_a_file_that_is_not_listed_is_refused_by_name(folder: Path) -> None:
    rewrite(folder, lambda raw: raw["files"].pop(0))
    with pytest.raises(ArtifactError, match=r"graph\.onnx is not one of the artifact's files"):
        artifacts.load(folder)


@pytest.mark.parametrize(
    "name", ["weights.bin", "reference/more.npz", ".hidden", ".graph.onnx.partial-1", "sub/bench.json"]
)
def test_nothing_may_be_added(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with pytest.raises(ArtifactError, match=f"{name} is not one of the artifact's files"):
        artifacts.load(folder)


@pytest.mark.parametrize("name", [*EVIDENCE, "report.html", ".bench.json.partial-4711"])
def test_evidence_and_a_report_may_lie_beside_it(folder: Path, name: str) -> None:
    (folder / name).touch()
    artifacts.load(folder)


def test_other_files_go_outside_of_the_artifact_and_of_its_family(folder: Path) -> None:
    for out in (folder, folder / "package", folder / "deep" / "package"):
        with pytest.raises(UsageError, match=r"is inside the artifact, which takes no other files"):
            artifacts.refuse_inside(out, folder)
    artifacts.refuse_inside(folder.parent / "package", folder)
    (folder.parent / FAMILY).write_text("{}")
    with pytest.raises(UsageError, match=r"is inside the family of the artifact, which takes no other files"):
        artifacts.refuse_inside(folder.parent / "package", folder)
    artifacts.refuse_inside(folder.parent.parent / "package", folder)


def test_no_folder_is_written_into_an_artifact_or_a_family(folder: Path) -> None:
    (folder / "sites.json").touch()
    family = folder.parent / "family"
    family.mkdir()
    (family / FAMILY).touch()
    for place in (folder, family):
        with pytest.raises(UsageError, match=r"which takes no other files"):
            artifacts.refuse_existing(place / "deep" / "other", force=True)
        with pytest.raises(UsageError, match=r"which takes no other files"), artifacts.atomic_folder(place / "other"):
            pytest.fail("the folder was made")
    assert left_in(family) == {FAMILY}
    (folder.parent / "manifest.json").touch()  # such as of a web page
    artifacts.refuse_existing(folder.parent / "other", force=False)


def test_an_empty_list_is_refused(folder: Path) -> None:
    rewrite(folder, lambda raw: raw.update(files=[], runs=None))
    with pytest.raises(ArtifactError, match="the manifest lists no file"):
        artifacts.load(folder)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("graph.onnx")], ids=["fifo", "link"])
@pytest.mark.parametrize("name", ["model.onnx", "bench.json", MANIFEST])
def test_only_plain_files_are_read(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(ArtifactError, match=f"{name} is not a plain file"):
        artifacts.load(folder)


def test_the_folder_itself_may_be_a_link(folder: Path) -> None:
    (folder.parent / "latest").symlink_to(folder)
    assert artifacts.load(folder.parent / "latest").manifest.files


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "sub/../../outside", "link"])
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, path: str) -> None:
    (folder.parent / "outside").write_text("secret")
    (folder / "link").symlink_to("../outside")
    rewrite(folder, lambda raw: raw["files"].append({"path": path, "bytes": 6, "sha256": "0"}))
    with pytest.raises(ArtifactError, match="leads out of the folder"):
        artifacts.load(folder)


@pytest.mark.parametrize(
    ("version", "fix"), [(SCHEMA + 1, "Update vitdeploy"), (0, "Export"), (None, "Export"), ("9", "Export")]
)
def test_another_schema_is_refused(folder: Path, version: object, fix: str) -> None:
    rewrite(folder, lambda raw: raw.update(schema_version=version))
    reads = rf"manifest schema {version!r}, this version of vitdeploy reads 1 to {SCHEMA}\. {fix}"
    with pytest.raises(ArtifactError, match=reads):
        artifacts.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000, '{"schema_version": 1}'])
def test_what_is_no_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        artifacts.load(folder)


def test_a_manifest_that_cannot_be_read_is_refused(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    with pytest.raises(ArtifactError, match=r"manifest\.json is not a plain file"):
        artifacts.load(folder)


def test_what_it_runs_is_one_of_its_files(folder: Path) -> None:
    rewrite(folder, lambda raw: raw.update(runs="other.onnx"))
    with pytest.raises(ArtifactError, match=r"the manifest names 'other\.onnx' as the file to run"):
        artifacts.load(folder)


def test_other_folders_are_no_artifacts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, why in (
        (tmp_path, "has no manifest"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "file", "has no"),
    ):
        with pytest.raises(ArtifactError, match=why):
            artifacts.load(path)


def test_keys_of_a_newer_version_do_not_disturb(folder: Path) -> None:
    rewrite(folder, lambda raw: raw["target"].update(clock="fast"))
    assert artifacts.load(folder).manifest.target.kind == "onnxruntime"


def test_evidence_is_read_back_only_if_it_is_about_this_manifest(folder: Path) -> None:
    found = artifacts.load(folder)
    assert found.read_evidence(Bench) == (None, "there is no bench.json")
    mine = found.write_evidence(audit())
    assert mine == audit(manifest=found.digest)
    assert found.read_evidence(Audit) == (mine, "")
    (folder / "bench.json").write_text(bench(manifest="another").model_dump_json())
    assert found.read_evidence(Bench) == (None, "bench.json is about another manifest")
    (folder / "bench.json").write_text('{"valid": ')
    stored, why = found.read_evidence(Bench)
    assert stored is None
    assert "bench.json cannot be read" in why
    assert left_in(folder) == {MANIFEST, "graph.onnx", "model.onnx", "reference", "audit.json", "bench.json"}


def test_staged_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "a"
    with artifacts.atomic_folder(out) as inside:
        write(inside)
        assert not out.exists()
        assert inside.parent == out.parent, "a rename is atomic on one file system only"
    assert artifacts.load(out).manifest.stage == "artifact"
    assert left_in(out.parent) == {"a"}
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_staged_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail(tmp_path / "new" / "deep" / "a", error())
    assert left_in(tmp_path) == set()


def test_staged_keeps_the_old_one_when_the_new_one_fails(folder: Path) -> None:
    digest = artifacts.load(folder).digest
    with pytest.raises(ValueError, match="half-way"):
        fail(folder, ValueError("half-way"), force=True)
    assert artifacts.load(folder).digest == digest
    assert left_in(folder.parent) == {"a"}


def test_staged_replaces_with_force(folder: Path) -> None:
    (folder / "bench.json").write_text("old evidence")
    with artifacts.atomic_folder(folder, force=True) as inside:
        write(inside)
    assert left_in(folder.parent) == {"a"}
    assert not (folder / "bench.json").exists()


def test_the_old_one_comes_back_when_it_cannot_be_replaced(folder: Path) -> None:
    digest = artifacts.load(folder).digest
    with pytest.raises(FileNotFoundError):
        staging._replace(folder.parent / "somebody removed it", folder)
    assert artifacts.load(folder).digest == digest
    assert left_in(folder.parent) == {"a"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path: Path, number: int) -> None:
    with pytest.raises(ArtifactError, match=f"the disk of {tmp_path} is full"), artifacts.atomic_folder(tmp_path / "a"):
        raise OSError(number, "full")
    assert left_in(tmp_path) == set()


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="broken"), artifacts.atomic_folder(tmp_path / "a"):
        raise OSError(errno.EIO, "broken")


def test_existing_folders_are_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"exists\. Use --force"):
        artifacts.refuse_existing(folder, force=False)
    artifacts.refuse_existing(folder, force=True)
    artifacts.refuse_existing(folder.parent / "other", force=False)


def test_force_replaces_artifacts_only(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    artifacts.refuse_existing(tmp_path / "photos", force=True)  # empty: nothing is lost
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("photos", "file", "dangling"):
        with pytest.raises(ArtifactError, match="is not an artifact"):
            artifacts.refuse_existing(tmp_path / name, force=True)
    with pytest.raises(ArtifactError, match="mount point"):
        artifacts.refuse_existing(Path("/proc"), force=True)
    with pytest.raises(ArtifactError, match=f"{tmp_path / 'file'} is a file"):
        artifacts.refuse_existing(tmp_path / "file" / "deep" / "a", force=False)


def test_atomic_file_is_whole_or_absent(tmp_path: Path) -> None:
    with artifacts.atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert left_in(tmp_path) == {temporary.name}
    assert (tmp_path / "a").read_text() == "new"

    def interrupted() -> None:
        with artifacts.atomic_file(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a").read_text() == "new"
    assert left_in(tmp_path) == {"a"}
