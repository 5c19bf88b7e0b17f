"""YAML as people read it: scalars by the core schema of YAML 1.2. In PyYAML's 1.1, `off` is False and `1:4:8` is 3848.

Data only: nothing that a tag names is constructed.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml


def loads(text: str) -> Any:
    """What `text` holds.

    Raises:
        ValueError: it is not YAML, or a key is there twice; the message says where.
    """
    try:
        return yaml.load(text, _CoreLoader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(_problem(error)) from None


class _CoreLoader(yaml.SafeLoader):
    """A key that is given twice is an error: PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
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


def _problem(error: yaml.YAMLError) -> str:
    """`line 3: expected ',' or ']'`; what has no line is said as it stands."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error)
