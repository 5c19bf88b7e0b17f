r"""Show text that anyone may have written: what a terminal or a CI system would act on is written as an escape.

Names of models, layers, classes and files, and what a remote machine prints, may hold terminal escapes, characters that
turn the direction of writing (U+202E), invisible ones, and line ends. They are shown as Python would write them:
`\x1b`, `\u202e`, `\n`. Letters, signs and spaces of all languages stay.
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import PurePath
from typing import Any, ParamSpec, TypeVar, cast

from pydantic import BaseModel

_UNUSUAL = re.compile(r"[^\x20-\x7e]")
_SPACES = "Zs"  # a no-break space is not "printable" to Python, but harmless

# How GitHub's runner finds a command in a log: at the start of a line, after spaces; older ones anywhere in it
# (actions/runner, src/Runner.Common/ActionCommand.cs).
_COMMAND, _OLD_COMMAND = "::", "##["

AnyT = TypeVar("AnyT")
ResultT = TypeVar("ResultT")
ParametersT = ParamSpec("ParametersT")


def escape(text: str) -> str:
    """Return `text` on one line, without a character that a terminal acts on or does not show."""
    return _UNUSUAL.sub(lambda match: _escape_character(match.group()), text)


def escape_lines(text: str) -> str:
    """Return `text` with its line ends, and every line as `escape` shows it."""
    return "\n".join(escape(line) for line in text.split("\n"))


def escape_json(text: str) -> str:
    r"""Return JSON with the same value, in which such characters are written as `\uXXXX`."""
    text = text.replace(_OLD_COMMAND, "#\\u0023[")  # only inside of a text
    return _UNUSUAL.sub(lambda match: _quote(match.group()), text)


def escape_strings(value: AnyT) -> AnyT:
    """Return a copy of a model, a data class or a collection in which every text is escaped."""
    return cast(AnyT, _copy(value))


def of_escaped(make: Callable[ParametersT, ResultT]) -> Callable[ParametersT, ResultT]:
    """Let a function that makes tables or lines get its arguments with every text in them escaped."""

    @wraps(make)
    def make_of_escaped(*arguments: ParametersT.args, **options: ParametersT.kwargs) -> ResultT:
        return make(*_copy(arguments), **_copy(options))

    return make_of_escaped


def escape_log(text: str) -> str:
    """Return `text` with its line ends, but without a line that GitHub's runner takes for a command."""
    lines = (break_commands(escape(line)) for line in text.split("\n"))
    return "\n".join(f"\\{line}" if starts_command(line) else line for line in lines)


def starts_command(line: str) -> bool:
    """Return True if GitHub's runner would take a line of a log for a command."""
    return line.lstrip().startswith(_COMMAND)


def break_commands(text: str) -> str:
    """Break with a backslash what an older runner takes for a command anywhere in a line."""
    return text.replace(_OLD_COMMAND, "#\\#[")


def is_shown(character: str) -> bool:
    """Return True if a terminal shows the character and does nothing else."""
    return character.isprintable() or unicodedata.category(character) == _SPACES


def replace_undecodable(text: str) -> str:
    """Write bytes of a file's name that are no UTF-8 as escapes, because neither JSON nor a terminal can have them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _escape_character(character: str) -> str:
    return character if is_shown(character) else character.encode("unicode_escape").decode()


def _quote(character: str) -> str:
    is_layout = character == "\n"  # inside a text JSON never has it
    return character if is_layout or is_shown(character) else json.dumps(character)[1:-1]


def _copy(value: Any) -> Any:
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in (*type(value).model_fields, *(value.model_extra or {}))}
        return value.model_copy(update={name: _copy(field) for name, field in fields.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **{name: _copy(field) for name, field in fields.items()})
    if isinstance(value, Mapping):
        return {_copy(key): _copy(item) for key, item in value.items()}
    if isinstance(value, PurePath):
        return type(value)(escape(str(value)))
    if isinstance(value, (list, tuple)):
        items = [_copy(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
