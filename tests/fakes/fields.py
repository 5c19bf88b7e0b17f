"""The names of the fields in layer plans: the form of a version, without its content."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_FIELD = re.compile(r"(?:^|, )([A-Z]\w+(?:/\w+)?): ")
_QUOTED_FIELD = re.compile(r'"(\w+)": ')
_RECORD = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class Fields:
    """The fields of layers, of their tensors, and of records of weights."""

    layer: frozenset[str]
    tensor: frozenset[str]
    weights: frozenset[str]


def fields_of_plan(lines: Iterable[str]) -> Fields:
    """The fields in lines of a build log or of the inspector's one-line format."""
    layer, tensor, weights = set[str](), set[str](), set[str]()
    for line in lines:
        head = line.partition("Metadata: ")[0]  # node names can contain anything
        for record in _RECORD.findall(head):
            inner = record.strip("{} ")
            (weights if inner.startswith('"') else tensor).update(
                _QUOTED_FIELD.findall(inner) if inner.startswith('"') else _FIELD.findall(inner)
            )
        layer |= set(_FIELD.findall(_RECORD.sub("{}", head)))
        layer |= {"Metadata"} if "Metadata: " in line else set()
    return Fields(frozenset(layer), frozenset(tensor), frozenset(weights))


def fields_of_json(text: str) -> Fields:
    """The fields in the inspector's JSON; none if it is no JSON."""
    try:
        content = json.loads(text)
    except ValueError:
        return Fields(frozenset(), frozenset(), frozenset())
    entries = content.get("Layers", []) if isinstance(content, Mapping) else content
    layers: list[Mapping[str, Any]] = [entry for entry in entries if isinstance(entry, Mapping)]
    tensors = [
        tensor
        for layer in layers
        for name in ("Inputs", "Outputs", "Constants")
        for tensor in layer.get(name) or []
        if isinstance(tensor, Mapping)
    ]
    weights = [layer["Weights"] for layer in layers if isinstance(layer.get("Weights"), Mapping)]
    return Fields(*(frozenset(key for each in group for key in each) for group in (layers, tensors, weights)))
