"""Files that decide a model although its recipe does not name them: shards, external data, an imported module."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.machinery import all_suffixes
from pathlib import Path

from vitdeploy.artifact.external_data import list_locations
from vitdeploy.plain_files import read_plain

_INDEX, _ONNX = ".index.json", ".onnx"
_MAX_INDEX_BYTES = 64 << 20
_PYTHON = "python:"


def list_parts(path: Path) -> list[Path]:
    """List the files that a file refers to: the shards of an index, the external data of an ONNX file.

    What cannot be read refers to nothing: loading the model says what is wrong with it.
    """
    try:
        if path.name.endswith(_INDEX):
            names = json.loads(read_plain(path, _MAX_INDEX_BYTES))["weight_map"].values()
        elif path.suffix.lower() == _ONNX:
            names = list_locations(path)
        else:
            return []
        parts = {path.parent / str(name) for name in names}
        return sorted(part for part in parts if part.is_file())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def find_modules(value: object) -> Iterator[tuple[str, Path]]:
    """Yield the modules that specs `python:MODULE:FACTORY` in a value name, each with its file. None is imported."""
    if isinstance(value, str):
        module = value.removeprefix(_PYTHON).rpartition(":")[0]
        if value.startswith(_PYTHON) and module and not module.endswith(".py"):
            file = _find_file(module)
            if file is not None:
                yield module, file
    elif isinstance(value, dict):
        for inner in value.values():
            yield from find_modules(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from find_modules(inner)


def _find_file(module: str) -> Path | None:
    """Return the file of a module, in the current folder or where Python looks for it; None if there is none.

    `importlib.util.find_spec` would run the packages that the module is in.
    """
    *packages, name = module.split(".")
    names = [f"{name}/__init__.py", *(f"{name}{suffix}" for suffix in all_suffixes())]
    places = [Path(place, *packages) for place in (str(Path.cwd()), *sys.path)]
    return next((file for place in places for one in names if (file := place / one).is_file()), None)
