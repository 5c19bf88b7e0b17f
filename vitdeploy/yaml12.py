"""YAML with the scalars of YAML 1.2's core schema. In PyYAML's YAML 1.1, `off` is False and `1:4:8` is 3848.

A file is data only: tags never construct Python objects.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

MAX_CHARACTERS = 1 << 18
"""PyYAML reads about 100,000 characters a second."""
_MAX_DEPTH = 32
_MAX_VALUES = 20_000


def loads(text: str) -> Any:
    """Parse `text`.

    Raises:
        ValueError: it is not YAML, a mapping has a key twice, or it is too long, too deep, or too large once all
            aliases are replaced. The message has the line.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    try:
        _check_depth(text)
        loader = _CoreLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _count_values(root, {})
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(_describe(error)) from None
    except (AttributeError, KeyError, TypeError, IndexError, OverflowError) as error:  # `!!bool x`, `!!timestamp x`
        raise ValueError(f"a value does not fit its tag ({type(error).__name__}: {error})") from None


def _check_depth(text: str) -> None:
    """Refuse deep nesting before PyYAML builds values, which it does by recursion."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, _CoreLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH or count > 2 * _MAX_VALUES:
            problem = f"more than {_MAX_DEPTH} levels" if depth > _MAX_DEPTH else f"more than {_MAX_VALUES:,} values"
            line = event.start_mark.line + 1 if event.start_mark is not None else 1
            raise ValueError(f"line {line}: {problem}")


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Count the values in a node with all aliases replaced. `counts` holds those of nodes seen before."""
    if id(node) not in counts:
        counts[id(node)] = _MAX_VALUES + 1  # until it is known; a node inside of itself would never end
        children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = 0 if isinstance(node, yaml.ScalarNode) else sum(_count_values(child, counts) for child in children)
        counts[id(node)] = 1 + inner
    if counts[id(node)] > _MAX_VALUES:
        problem = f"its aliases stand for more than {_MAX_VALUES:,} values"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return counts[id(node)]


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
