"""Protocol Buffers' text format, in which Triton reads `config.pbtxt`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

Value: TypeAlias = "str | int | bool | Mapping[str, Value] | Sequence[Value]"


class Symbol(str):
    """A name of an enumeration, which has no quotes."""

    __slots__ = ()


def format_message(fields: Mapping[str, Value], indent: str = "") -> str:
    """Return a message as text, one field a line. A sequence becomes a repeated field."""
    lines = []
    for name, value in fields.items():
        lines += [f"{indent}{name}{text}\n" for text in _format_field(value, indent)]
    return "".join(lines)


def _format_field(value: Value, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield f" {{\n{format_message(value, f'{indent}  ')}{indent}}}"
    elif isinstance(value, str) or not isinstance(value, Sequence):
        yield f": {_format_scalar(value)}"
    elif value and all(isinstance(item, int) for item in value):
        yield f": [{', '.join(_format_scalar(item) for item in value)}]"
    else:
        for item in value:
            yield from _format_field(item, indent)


def _format_scalar(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Symbol):
        return str(value)
    return json.dumps(value, ensure_ascii=False)  # its escapes are also those of the text format
