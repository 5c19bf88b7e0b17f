"""Class names that the user gives in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.data.class_names import imagenet_labels
from vitdeploy.data.text_file import parse_text, read_text
from vitdeploy.errors import DataError
from vitdeploy.plain_files import expand_home

IMAGENET = "imagenet"
"""Stands for the 1,000 names of ImageNet-1k, which vitdeploy has."""

_FIX = (
    "Write one name per line, in the order of the outputs; or a JSON list of names; or a JSON map of index to name "
    '({"0": "cat"}) or name to index ({"cat": 0}).'
)


def read_labels(spec: str) -> tuple[str, ...]:
    """Return the class names in a file, in the order of the model's outputs.

    A file `.json` has a list of names, or a map from indices to names or from names to indices. A file `.yaml` has such
    a list or map under `names`, as data sets for YOLO have. Any other file has one name per line.

    Args:
        spec: the path of the file, or "imagenet".

    Raises:
        DataError: there is no such file, it cannot be read, or it does not name each index from 0 on once.
    """
    if spec == IMAGENET:
        return imagenet_labels()
    path = expand_home(spec)
    text = read_text(path, "labels", absent="Check the path, or give imagenet.", fix=_FIX)
    names = order_names(_parse(path, text))
    if names is None:
        raise DataError(f"{path} does not name the classes 0, 1, 2, … once each", fix=_FIX)
    return names


def order_names(content: Any) -> tuple[str, ...] | None:
    """Return names in the order of their indices, from a list or a map; None if they are not one for each index."""
    if isinstance(content, (list, tuple)):
        names = [name if isinstance(name, str) else None for name in content]
    elif isinstance(content, Mapping):
        pairs = list(content.items())
        if pairs and all(_is_index(index) for _, index in pairs) and not all(_is_index(name) for name, _ in pairs):
            pairs = [(index, name) for name, index in pairs]
        if not all(_is_index(index) for index, _ in pairs):
            return None
        by_index = {int(index): name for index, name in pairs}
        names = [by_index.get(index) for index in range(len(pairs))]
        names = [name if isinstance(name, str) else None for name in names]
    else:
        return None
    known = tuple(name.strip() for name in names if name is not None and name.strip())
    return known if known and len(known) == len(names) else None


def _parse(path: Path, text: str) -> Any:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        return text.strip("\r\n").splitlines()
    content = parse_text(path, text, fix=_FIX)
    return content.get("names") if suffix != ".json" and isinstance(content, Mapping) else content


def _is_index(value: Any) -> bool:
    return not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,9}", str(value)) is not None
