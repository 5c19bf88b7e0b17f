"""Readers of weights files that share no code with torch, safetensors or vitdeploy: what a file really holds."""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
                "U8": "<u1", "BOOL": "?"}  # fmt: skip
_STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8",
             "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1",
             "BoolStorage": "?"}  # fmt: skip
_PT2_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f2", 7: "<f4", 8: "<f8"}
_LARGEST = 1 << 24  # values; every file of the tests has far fewer


class Damaged(Exception):
    """The file contradicts itself."""


def read(path: Path) -> Arrays:
    """Return the tensors of a file by name.

    Raises:
        Damaged: the file contradicts itself, or is of no form that is known here.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path.read_bytes())
        if path.suffix == ".pt2":
            return _read_pt2(path)
        return _state(_read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path))
    except Damaged:
        raise
    except Exception as error:  # whatever a damaged file makes of these few lines
        raise Damaged(f"{type(error).__name__}: {error}") from error


def _read_safetensors(content: bytes) -> Arrays:
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= len(data):
            raise Damaged(f"{name} is outside of the file")
        arrays[name] = np.frombuffer(data[begin:end], _SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
    return arrays


class _Reader(pickle.Unpickler):
    """Unpickle tensors as arrays, and nothing else."""

    def __init__(self, content: io.BytesIO, storage: Callable[[Any], NDArray[Any]]) -> None:
        super().__init__(content, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise Damaged(f"it needs {module}.{name}")

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        values: NDArray[Any] = self._storage(pid)
        return values


def _rebuild(storage: NDArray[Any], offset: int, sizes: Any, strides: Any, *_: Any) -> NDArray[Any]:
    return _view(storage, offset, sizes, strides)


def _view(storage: NDArray[Any], offset: int, sizes: Any, strides: Any) -> NDArray[Any]:
    """Return a strided view that stays within the storage."""
    if len(sizes) != len(strides) or min([0, offset, *sizes, *strides]) < 0 or math.prod(sizes) > _LARGEST:
        raise Damaged(f"a tensor of sizes {sizes} and strides {strides} from {offset}")
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if math.prod(sizes) and last >= len(storage):
        raise Damaged(f"a tensor reaches value {last} of a storage of {len(storage)}")
    if not math.prod(sizes):
        return np.zeros(tuple(sizes), storage.dtype)
    steps = [stride * storage.itemsize for stride in strides]
    view: NDArray[Any] = np.lib.stride_tricks.as_strided(storage[offset:], sizes, steps)
    return view.copy()


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:  # reading checks the CRC of each member
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def _read_zip(path: Path) -> Any:
    members = _members(path)

    def storage(pid: Any) -> NDArray[Any]:
        _, dtype, key, _, count = pid
        values = np.frombuffer(members[f"data/{key}"], dtype)
        if len(values) < count:
            raise Damaged(f"storage {key} has {len(values)} values, not {count}")
        return values

    return _Reader(io.BytesIO(members["data.pkl"]), storage).load()


def _read_legacy(path: Path) -> Any:
    stream = io.BytesIO(path.read_bytes())
    for expected in (0x1950A86A20F9469CFC6C, 1001):
        if pickle.Unpickler(stream).load() != expected:
            raise Damaged("it is no file of torch")
    pickle.Unpickler(stream).load()
    begin = stream.tell()
    types: dict[str, tuple[str, int]] = {}

    def remember(pid: Any) -> NDArray[Any]:
        _, dtype, key, _, count, *_ = pid
        types[key] = (dtype, count)
        if count > _LARGEST:
            raise Damaged(f"a storage of {count} values")
        return np.zeros(count, dtype)

    _Reader(stream, remember).load()
    storages: dict[str, NDArray[Any]] = {}
    keys = pickle.Unpickler(stream).load()
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        dtype = types[key][0]
        values = np.frombuffer(stream.read(count * np.dtype(dtype).itemsize), dtype)
        if len(values) != count:
            raise Damaged(f"storage {key} is cut off")
        storages[key] = values
    stream.seek(begin)
    return _Reader(stream, lambda pid: storages[pid[2]]).load()


def _state(content: Any) -> Arrays:
    """Return the state dict inside a checkpoint."""
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
    return dict(content)


def _read_pt2(path: Path) -> Arrays:
    members = _members(path)
    arrays = {}
    for kind in ("weights", "constants"):
        config = json.loads(members[f"data/{kind}/model_{kind}_config.json"])["config"]
        for name, entry in config.items():
            meta = entry["tensor_meta"]
            storage = np.frombuffer(members[f"data/{kind}/{entry['path_name']}"], _PT2_TYPES[meta["dtype"]])
            sizes, strides = ([part["as_int"] for part in meta[key]] for key in ("sizes", "strides"))
            arrays[name] = _view(storage, meta["storage_offset"]["as_int"], sizes, strides)
    return arrays
