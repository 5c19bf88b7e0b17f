"""Point 10: data files, JSON and YAML are bounded by size and depth."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy import yaml12
from vitdeploy.commands.evaluate.recorded_reference import RecordedReference
from vitdeploy.data.array_files import read_npy, read_npz
from vitdeploy.data.opening import open_dataset
from vitdeploy.errors import DataError, RecipeError
from vitdeploy.recipe import Preprocess
from vitdeploy.recipe.reading import read

_FIX = "Save it again."


def _npy(shape: str, kind: str = "|u1", content: bytes = b"") -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def _npz(path: Path, content: bytes, **more: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content, **more)
    return path


_HOSTILE = {
    "more than the file": _npy("(1000000000000,)"),
    "less than the file": _npy("(1,)", content=b"12345"),
    "overflow": _npy("(4294967296, 4294967296, 4294967296)"),
    "negative": _npy("(-1,)"),
    "no bytes each": _npy("(1000000000000000000,)", "|V0"),
    "objects": _npy("(1,)", "|O", b"cos\nsystem\n(S'true'\ntR."),
    "not a tuple": _npy("'abc'"),
    "deep": _npy("(" * 200 + ")" * 200),
    "code": _npy("(__import__('os').system('true'),)"),
    "unknown type": _npy("(1,)", "nonsense"),
    "long header": _npy("(" + "1," * 30_000 + ")"),
    "empty": b"",
    "no header": b"\x93NUMPY",
    "other version": b"\x93NUMPY\x09\x00" + bytes(100),
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": b"\x80\x04cos\nsystem\n",
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_arrays_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.npy").write_bytes(_HOSTILE[name])
    with pytest.raises(DataError) as error:
        read_npy(tmp_path / "a.npy", _FIX)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError):
        read_npz(_npz(tmp_path / "a.npz", _HOSTILE[name]), _FIX)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "array", [np.arange(24).reshape(2, 3, 4), np.zeros((0, 3)), np.float32(7), np.ones((3, 5), "?")]
)
def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path, array: np.ndarray[Any, Any], order: Any) -> None:
    array = np.asarray(array, order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", one=array, two=array)
    for found in (read_npy(tmp_path / "a.npy", _FIX), *read_npz(tmp_path / "a.npz", _FIX).values()):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype
        assert found.flags.writeable


def test_a_zip_bomb_is_refused_by_what_it_would_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_MAX_DATA_BYTES", str(1 << 20))
    path = _npz(tmp_path / "a.npz", _npy("(2097152,)", content=bytes(2 << 20)))
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"bytes once unpacked\. .*VITDEPLOY_MAX_DATA_BYTES=4194304"):
        read_npz(path, _FIX)


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz", _npy("(64,)", content=bytes(64)))
    raw = path.read_bytes()
    size = len(_npy("(64,)", content=bytes(64)))
    path.write_bytes(raw.replace(struct.pack("<I", size), struct.pack("<I", size + 1000)))
    with pytest.raises(DataError):
        read_npz(path, _FIX)


def test_names_are_unique_and_few(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for index in range(5000):
            archive.writestr(f"{index}.npy", b"")
    with pytest.raises(DataError, match="5,000 arrays"):
        read_npz(tmp_path / "many.npz", _FIX)
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        archive.writestr("images.npy", _npy("(0,)"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("images.npy", _npy("(0,)"))
    with pytest.raises(DataError, match="two arrays 'images'"):
        read_npz(tmp_path / "twice.npz", _FIX)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_pipes_are_not_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="not a plain file"):
        (read_npz if name == "a.npz" else read_npy)(tmp_path / name, _FIX)


@pytest.mark.timeout(180)
def test_a_saved_reference_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match="not a plain file"):
        RecordedReference(tmp_path / "fifo")
    monkeypatch.setenv("VITDEPLOY_MAX_DATA_BYTES", str(1 << 20))
    path = _npz(tmp_path / "a.npz", bytes(2 << 20))
    with pytest.raises(DataError, match=r"larger than 1,048,576 bytes once unpacked.*VITDEPLOY_MAX_DATA_BYTES"):
        RecordedReference(path)


# ------------------------------------------------------------------------------------------------------------- COCO

_COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}],
    "categories": [{"id": 1, "name": "cat"}],
}


def _open_boxes(folder: Path, text: str) -> None:
    (folder / "images").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "images" / "a.png")
    (folder / "annotations.json").write_text(text)
    preprocess = Preprocess(size=(8, 8))
    data = open_dataset(str(folder), preprocess, labels=None, need_labels=True, split="evaluation", form="boxes")
    assert len(list(data)) == 1


def test_plain_annotations_are_read(tmp_path: Path) -> None:
    _open_boxes(tmp_path, json.dumps(_COCO))


@pytest.mark.parametrize(
    "change",
    [
        {"images": [{"id": [1], "file_name": "a.png"}]},
        {"images": [{"id": 1, "file_name": "a\0.png"}]},
        {"images": [{"id": 1, "file_name": "x" * 5000}]},
        {"images": [{"id": 1, "file_name": "../../etc/passwd"}]},
        {"images": ["a.png"]},
        {"images": None},
        {"annotations": ["a"]},
        {"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1e400, 2]}]},
        {"annotations": [{"image_id": 1, "category_id": float("inf"), "bbox": [0, 0, 2, 2]}]},
        {"categories": [{"id": 10**30, "name": "cat"}]},
        {"categories": [{"id": float("inf"), "name": "cat"}]},
        {"categories": {"id": 1}},
    ],
)
def test_hostile_annotations_are_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        _open_boxes(tmp_path, json.dumps(_COCO | change))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "null"],
)
def test_deep_and_broken_json_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError):
        _open_boxes(tmp_path, text)


def test_large_json_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_MAX_JSON_BYTES", "100")
    with pytest.raises(DataError, match=r"more than 100 are not read.*VITDEPLOY_MAX_JSON_BYTES=400"):
        _open_boxes(tmp_path, json.dumps(_COCO))


# ------------------------------------------------------------------------------------------------------------- YAML

_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
_MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
_YAML = {
    "billion laughs": _LAUGHS,
    "merges": _MERGES,
    "circle": "a: &a [*a]",
    "circle of maps": "&a {b: *a}",
    "deep lists": "[" * 20_000,
    "deep maps": "{a: " * 20_000,
    "deep blocks": "".join(" " * n + "a:\n" for n in range(2000)),
    "long": "a: " + "x" * (1 << 20),
    "many": "[" + "1," * 100_000 + "1]",
    "date": "a: !!timestamp x",
    "bool": "a: !!bool x",
    "int": "a: !!int x",
    "float": "a: !!float x",
    "many digits": "a: " + "9" * 5000,
    "tag": "a: !!python/object/apply:os.system [true]",
    "key": "? [a, b]\n: 1",
    "two documents": "a: 1\n---\nb: 2",
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", _YAML)
def test_hostile_yaml_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        yaml12.loads(_YAML[name])
    (tmp_path / "r.yaml").write_text(_YAML[name])
    with pytest.raises(RecipeError) as error:
        read(tmp_path / "r.yaml")
    assert "\n" not in str(error.value)


def test_aliases_of_a_few_values_are_read() -> None:
    assert yaml12.loads("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }


@pytest.mark.timeout(180)
def test_a_recipe_is_a_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="not a plain file"):
        read(tmp_path / "r.yaml")
