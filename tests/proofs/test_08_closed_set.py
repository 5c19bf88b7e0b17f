"""Point 8: the file set of an artifact is closed, and engines open what was hashed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.artifact.test_artifact import rewrite, write
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import MANIFEST, Artifact, contents
from vitdeploy.artifact.external_data import list_locations
from vitdeploy.artifact.layout import SIGNATURES
from vitdeploy.errors import ArtifactError
from vitdeploy.runtime.artifact_session import open_session


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "a")


def _tensor(location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4], data_location=1)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value="16")
    return tensor


def _graph(tensor: onnx.TensorProto | None = None, nodes: list[onnx.NodeProto] | None = None) -> onnx.GraphProto:
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in ("x", "y")]
    nodes = nodes or [helper.make_node("Identity", ["x"], ["y"])]
    return helper.make_graph(nodes, "g", value[:1], value[1:], [tensor] if tensor is not None else [])


def _initializer(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.initializer.append(tensor)


def _constant(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def _branch(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    inner = _graph(nodes=[helper.make_node("If", ["x"], ["y"], then_branch=_graph(tensor), else_branch=_graph())])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=_graph(), else_branch=inner))


def _function(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    model.functions.append(helper.make_function("d", "f", [], ["y"], [node], [helper.make_opsetid("", 18)]))


def _sparse(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, dims=[4]))


def _training(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.training_info.add().initialization.initializer.append(tensor)


_PLACES = [_initializer, _constant, _branch, _function, _sparse, _training]
Place = Callable[[onnx.ModelProto, onnx.TensorProto], None]


def _save(path: Path, place: Place, location: str) -> None:
    model = helper.make_model(_graph(), opset_imports=[helper.make_opsetid("", 18)])
    place(model, _tensor(location))
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("place", _PLACES)
def test_every_location_in_a_graph_is_found(tmp_path: Path, place: Place) -> None:
    _save(tmp_path / "g.onnx", place, "weights.data")
    assert list_locations(tmp_path / "g.onnx") == ["weights.data"]


@pytest.mark.parametrize("place", _PLACES)
@pytest.mark.parametrize("location", ["bench.json", "report.html", "../outside", "/etc/hostname", "sub/../../outside"])
def test_a_graph_reads_hashed_files_only(folder: Path, place: Place, location: str) -> None:
    """Evidence may lie beside an artifact and is not hashed, so it must not be weights too."""
    (folder / "bench.json").write_bytes(bytes(16))
    _save(folder / "graph.onnx", place, location)
    artifacts.seal(folder, _manifest(folder))
    with pytest.raises(ArtifactError, match=r"graph\.onnx reads '.*', which is not one of the artifact's files"):
        artifacts.load(folder)


def test_a_graph_reads_its_own_weights(folder: Path) -> None:
    (folder / "graph.onnx.data").write_bytes(bytes(16))
    _save(folder / "graph.onnx", _initializer, "graph.onnx.data")
    artifacts.seal(folder, _manifest(folder))
    assert artifacts.load(folder).manifest.files


@pytest.mark.parametrize("cut", [1, 30])
def test_a_damaged_graph_with_locations_is_one_line(folder: Path, cut: int) -> None:
    _save(folder / "graph.onnx", _initializer, "x" * 100)
    raw = (folder / "graph.onnx").read_bytes()
    (folder / "graph.onnx").write_bytes(raw[:-cut])
    artifacts.seal(folder, _manifest(folder))
    with pytest.raises(ArtifactError, match=r"graph\.onnx is not a readable graph"):
        artifacts.load(folder)


def _manifest(folder: Path) -> artifacts.Manifest:
    return artifacts.Manifest.model_validate_json((folder / MANIFEST).read_bytes())


def test_a_file_that_was_taken_off_the_list_and_changed_is_refused(
    demo: Callable[..., Artifact], tmp_path: Path
) -> None:
    """The case of the report: OpenVINO reads model.bin because it lies beside model.xml."""
    folder = shutil.copytree(demo(target="openvino").path, tmp_path / "a")
    rewrite(folder, lambda raw: raw.update(files=[f for f in raw["files"] if f["path"] != "model.bin"]))
    weights = np.fromfile(folder / "model.bin", np.uint8)
    (folder / "model.bin").write_bytes((weights ^ 1).tobytes())
    with pytest.raises(ArtifactError, match=r"model\.bin is not one of the artifact's files"):
        artifacts.load(folder)


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_an_engine_opens_only_the_kind_of_file_that_it_writes(
    demo: Callable[..., Artifact], tmp_path: Path, kind: str
) -> None:
    folder = shutil.copytree(demo(target=kind).path, tmp_path / "a")
    rewrite(folder, lambda raw: raw.update(runs="sites.json"))
    with pytest.raises(ArtifactError, match=r"names 'sites\.json' as the file to run"):
        open_session(artifacts.load(folder), threads=1)


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_what_was_hashed_is_what_is_opened(demo: Callable[..., Artifact], tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(demo(target=kind).path, tmp_path / "a")
    loaded = artifacts.load(folder)
    open_session(loaded, threads=1).close()
    name = str(loaded.manifest.runs)
    other = shutil.copy2(folder / name, tmp_path / "other")  # the same times, another file
    Path(other).replace(folder / name)
    with pytest.raises(ArtifactError, match=f"{name} was changed while it was opened"):
        open_session(loaded, threads=1)


def test_a_further_link_to_a_file_is_no_change(demo: Callable[..., Artifact], tmp_path: Path) -> None:
    """A host's store links its files into each job's folder."""
    folder = shutil.copytree(demo(target="onnxruntime").path, tmp_path / "a")
    loaded = artifacts.load(folder)
    (tmp_path / "other").hardlink_to(folder / "graph.onnx")
    open_session(loaded, threads=1).close()


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_may_lie_beside_it(folder: Path, name: str) -> None:
    (folder / name).touch()
    assert artifacts.load(folder).manifest.files


@pytest.mark.parametrize("name", ["signature.bin", "sub/signature.json", "manifest.json.sig.bin"])
def test_other_signatures_may_not(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with pytest.raises(ArtifactError, match="is not one of the artifact's files"):
        artifacts.load(folder)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "x/" * 3000, "./graph.onnx", "reference//example.npz", ""])
def test_odd_names_are_one_line(folder: Path, path: str) -> None:
    rewrite(folder, lambda raw: raw["files"].append({"path": path, "bytes": 5, "sha256": "0"}))
    with pytest.raises(ArtifactError):
        artifacts.load(folder)


def test_a_linked_folder_inside_is_refused(folder: Path) -> None:
    shutil.move(folder / "reference", folder.parent / "elsewhere")
    (folder / "reference").symlink_to("../elsewhere")
    with pytest.raises(ArtifactError):
        artifacts.load(folder)
    rewrite(folder, lambda raw: raw.update(files=[f for f in raw["files"] if "reference" not in f["path"]]))
    with pytest.raises(ArtifactError, match="reference is not a plain file"):
        artifacts.load(folder)


def test_a_large_file_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest says how large a file is, and no more than that is read."""
    os.truncate(folder / "graph.onnx", 1 << 40)
    monkeypatch.setattr(contents, "_digest", lambda *_: pytest.fail("it was read"))
    rewrite(folder, lambda raw: raw["files"].sort(key=lambda entry: entry["path"] != "graph.onnx"))
    with pytest.raises(ArtifactError, match=r"graph\.onnx is not the file that was exported"):
        artifacts.load(folder)


def test_deep_folders_are_one_line(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(contents._MAX_FOLDERS + 1):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    try:
        with pytest.raises(ArtifactError, match=r"folders in it|cannot be read"):
            artifacts.load(folder)
    finally:
        os.system(f"rm -rf {folder / 'd'}")  # shutil.rmtree of this Python recurses


def test_a_device_is_refused(folder: Path) -> None:
    try:
        os.mknod(folder / "graph2.onnx", 0o600 | 0o020000, os.makedev(1, 5))
    except OSError:
        pytest.skip("only root makes devices")
    with pytest.raises(ArtifactError, match=r"graph2\.onnx is not a plain file"):
        artifacts.load(folder)
    rewrite(folder, lambda raw: raw["files"].append({"path": "graph2.onnx", "bytes": 0, "sha256": "0"}))
    with pytest.raises(ArtifactError, match=r"graph2\.onnx is not a plain file"):
        artifacts.load(folder)
