"""Immutable values with a fixed set of keys, and a parser whose errors name the key in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from vitdeploy.errors import RecipeError
from vitdeploy.plugins import did_you_mean


class Frozen(BaseModel):
    """An immutable value. An unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


TAG = "<"
"""The start of the tags of a tagged union, which pydantic puts into the place of an error: they are no keys."""

FrozenT = TypeVar("FrozenT", bound=Frozen)
ModelT = TypeVar("ModelT", bound=BaseModel)

if TYPE_CHECKING:
    # mypy knows the fields of a pydantic model as those of a dataclass, and checks the changes against them: their
    # names and their types. The line below is an error that strict mypy must go on seeing.
    from dataclasses import replace as replace

    replace(Frozen(), nonsense=1)  # type: ignore[call-arg]
else:

    def replace(model: ModelT, /, **changes: object) -> ModelT:
        """Return a copy of a frozen model with some fields changed. Values are not validated again.

        Raises:
            TypeError: the model has no such field.
        """
        unknown = changes.keys() - type(model).model_fields.keys()
        if unknown:
            raise TypeError(f"{type(model).__name__} has no field {', '.join(sorted(unknown))}")
        return model.model_copy(update=changes)


def parse(kind: type[FrozenT], raw: Mapping[str, Any], *, where: str, beside: tuple[str, ...] = ()) -> FrozenT:
    """Parse `raw` into a `kind`. The first problem becomes one line that names the key.

    Args:
        kind: the class of the result.
        raw: keys and values.
        where: the start of an error message, such as the file and the section.
        beside: further keys of the same mapping, which were read before; an error suggests them too.

    Raises:
        RecipeError: an unknown key (with the nearest known one), a missing key, or a value that does not fit.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        loc = [str(part) for part in first["loc"] if not str(part).startswith(TAG)]
        if first["type"] == "extra_forbidden":
            known = [*beside, *_keys_at(kind, loc[:-1])]
            fix = f"Known keys there: {', '.join(known)}."
            message = f"{where}: unknown key {'.'.join(loc)!r}{did_you_mean(loc[-1], known)}"
        elif first["type"] == "missing":
            message, fix = f"{where}: {'.'.join(loc)!r} is missing", "Add it."
        elif first["type"] in ("model_type", "dict_type"):
            message = f"{where}: {'.'.join(loc) or 'it'} is {first['input']!r}, not a mapping"
            fix = f"Write it with its keys: {', '.join(_keys_at(kind, loc))}."
        else:
            message, fix = f"{where}: {_describe_value_error(kind, error)}", "Correct the value."
        raise RecipeError(message, fix=fix) from None


def describe_unread(error: Exception) -> str:
    """Return in one line why a file was not read: `there is no such file`, or its first key that does not fit."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return ": ".join(filter(None, (".".join(str(part) for part in first["loc"]), first["msg"])))
    return (str(error).splitlines() or [type(error).__name__])[0]


def _describe_value_error(kind: type[BaseModel], error: ValidationError) -> str:
    """`gate.max_drop_pp should be greater than 0, not -1`; for a union, the demands of all its members."""
    errors = error.errors(include_url=False)
    field = _field_name(kind, errors[0]["loc"])
    messages = [e["msg"].removeprefix("Value error, ") for e in errors if _field_name(kind, e["loc"]) == field]
    if all(message.startswith("Input ") for message in messages):
        demands = " or ".join(message.removeprefix("Input ") for message in messages)
        return f"{field or 'it'} {demands}, not {errors[0]['input']!r}"
    return f"{field}: {messages[0]}" if field else messages[0]


def _field_name(kind: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The dotted name of a field, without the union members that pydantic appends."""

    def parts() -> Iterator[str]:
        for depth, part in enumerate(loc):
            if isinstance(part, str) and part not in _keys_at(kind, [str(p) for p in loc[:depth]]):
                return
            yield str(part)

    return ".".join(parts())


def _keys_at(kind: type[BaseModel], loc: list[str]) -> list[str]:
    for part in loc:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        kind = next((a for a in _flatten(annotation) if isinstance(a, type) and issubclass(a, BaseModel)), kind)
    return list(kind.model_fields)


def _flatten(annotation: object) -> Iterator[object]:
    """Yield an annotation and everything in it."""
    yield annotation
    for inner in get_args(annotation):
        yield from _flatten(inner)
