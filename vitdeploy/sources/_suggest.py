"""Suggestions for a MODEL that has none of the known forms."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vitdeploy.artifact.layout import MANIFEST
from vitdeploy.plain_files import expand_home, read_plain
from vitdeploy.sources._checkpoint import has_suffix

_ENGINES = (".engine", ".plan", ".trt", ".xml", ".blob", ".tflite", ".mlmodel", ".mlpackage", ".pb")
_MAX_CONFIG_BYTES = 16 << 20


def suggest(spec: str) -> str | None:
    """Return what to type instead of a MODEL that has none of the known forms; None if nobody can tell."""
    path = expand_home(spec)
    return next(_list_suggestions(spec, path), None)


def _list_suggestions(spec: str, path: Path) -> Iterator[str]:
    name = spec.rstrip("/")
    if os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises for a long text
        yield from _read_folder(name, path)
    elif has_suffix(spec):
        yield f"It has only weights. Name the model that they are of: vitdeploy export timm:NAME --weights {spec}"
    elif spec.endswith(_ENGINES):
        yield "It is compiled already. Export the model that it was made from."
    elif spec.endswith(".py"):
        yield f"Name the function in it that returns the model: python:{spec}:FUNCTION."
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        yield f"Give hf:{spec} if it is a model of the Hugging Face hub."
    elif re.fullmatch(r"[\w.]+", spec):
        yield from _find_in_libraries(spec)


def _read_folder(name: str, folder: Path) -> Iterator[str]:
    """Tell a folder by its files: an artifact, a model of transformers, or one of timm."""
    if (folder / MANIFEST).is_file():
        yield f"It is an artifact: measure it with vitdeploy bench {name}, or look inside: vitdeploy inspect {name}."
    try:
        config = json.loads(read_plain(folder / "config.json", _MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(config, dict) and "architecture" in config:
        yield f"Give timm:{name}."
    yield f"Give hf:{name}."


def _find_in_libraries(name: str) -> Iterator[str]:
    """Tell a name that a library knows. Only installed ones are asked, and only now: importing them takes seconds."""
    if importlib.util.find_spec("timm") is not None:
        import timm

        if timm.is_model(name.partition(".")[0]):
            yield f"Give timm:{name}."
    if importlib.util.find_spec("torchvision") is not None:
        import torchvision

        if name in torchvision.models.list_models():
            yield f"Give torchvision:{name}."
