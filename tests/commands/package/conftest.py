"""Readers of what `package` writes: Triton's text format, and the programs that its Python backend runs."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.examples.conftest import made, photos
from tests.fakes import triton_python_backend_utils as backend

__all__ = ["made", "photos"]

Run = Callable[..., list[Any]]
_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[A-Za-z_][\w.]*|-?\d[\w.+-]*|[{}\[\]:,]|#[^\n]*')
_SHIPPED = ("vitdeploy_geometry", "vitdeploy_images", "vitdeploy_picture")


def read_pbtxt(text: str) -> dict[str, list[Any]]:
    """A message in the text format: field -> its values, in order; enumerations and booleans as their names."""
    tokens = [token for token in _TOKEN.findall(text) if not token.startswith("#")]

    def value() -> Any:
        token = tokens.pop(0)
        if token == "{":
            return message("}")
        if token[0] == '"':
            return json.loads(token)
        return int(token) if re.fullmatch(r"-?\d+", token) else token

    def message(end: str) -> dict[str, list[Any]]:
        fields: dict[str, list[Any]] = {}
        while tokens and tokens[0] != end:
            values = fields.setdefault(tokens.pop(0), [])
            if tokens[0] == ":":
                tokens.pop(0)
            if tokens[0] == "[":
                tokens.pop(0)
                while tokens[0] != "]":
                    values.append(value())
                    if tokens[0] == ",":
                        tokens.pop(0)
                tokens.pop(0)
            else:
                values.append(value())
        assert not end or tokens.pop(0) == end
        return fields

    return message("")


def read_config(repository: Path, model: str) -> dict[str, list[Any]]:
    return read_pbtxt((repository / model / "config.pbtxt").read_text(encoding="utf-8"))


def parameters(config: Mapping[str, list[Any]]) -> dict[str, str]:
    return {entry["key"][0]: entry["value"][0]["string_value"][0] for entry in config.get("parameters", [])}


def shapes(tensors: list[Any]) -> dict[str, tuple[str, list[int]]]:
    return {tensor["name"][0]: (tensor["data_type"][0], tensor["dims"]) for tensor in tensors}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Run]:
    """Load `model.py` of a package as Triton's Python backend does; the result answers a list of requests."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)

    def load(folder: Path) -> Run:
        for name in _SHIPPED:
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
        spec = importlib.util.spec_from_file_location(f"model_of_{folder.parent.name}", folder / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name in _SHIPPED:
            monkeypatch.delitem(sys.modules, name, raising=False)
        model = module.TritonPythonModel()
        model.initialize({"model_instance_kind": "CPU", "model_instance_device_id": "0"})

        def run(*requests: Mapping[str, np.ndarray]) -> list[Any]:
            wrapped = [backend.InferenceRequest([backend.Tensor(*pair) for pair in r.items()]) for r in requests]
            responses = model.execute(wrapped)
            assert len(responses) == len(requests)
            return [
                response.error().message()
                if response.has_error()
                else {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
                for response in responses
            ]

        return run

    return load
