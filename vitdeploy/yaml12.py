"""YAML with the scalars of YAML 1.2's core schema. In PyYAML's YAML 1.1, `off` is False and `1:4:8` is 3848.

A file is data only: tags never construct Python objects.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml


def loads(text: str) -> Any:
    """Parse `text`.

    Raises:
        ValueError: it is not YAML, or a mapping has a key twice. The message has the line.
    """
    try:
        return yaml.load(text, _CoreLoader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(_describe(error)) from None


class _CoreLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice. PyYAML would silently take the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


_CoreLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] not in ("bool", "int", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_CoreLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_CoreLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_CoreLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def _describe(error: yaml.YAMLError) -> str:
    """`line 3: expected ',' or ']'`; an error without a line keeps its own text."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error)
