"""The axes of a sweep: keys of a recipe, each with the values that it takes in turn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from vitdeploy.errors import RecipeError
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import Recipe

MOST_TRIALS = 10_000
"""More are a mistake in the matrix: at a minute each they take a week."""
SHORT = {
    "model": "model.spec",
    "precision": "precision.kind",
    "target": "target.kind",
    "device": "target.device",
    "batch": "target.batch",
    "task": "task.kind",
}
"""The key that the short name of an axis stands for."""
HOST, HERE = "host", "here"
"""The axis that is no key of a recipe: the machine that compiles, evaluates and times; and its value for this one."""
_OPEN = ("target", "task")
"""Sections with options of their own class, which checks them itself."""
_NOT_SWEPT = ("gate", "bench.seconds")
"""Keys that decide no result: the limits, and how long to measure."""


@dataclass(frozen=True)
class Axis:
    """A name as the sweep file has it, the keys of a recipe that it sets, and its values."""

    name: str
    keys: tuple[str, ...]
    values: tuple[Any, ...]

    def settings(self, value: Any) -> dict[str, Any]:
        """Return key -> value for one value of the axis."""
        if self._is_section(value):
            section = self.name.partition(".")[0]
            return {f"{section}.{key}": inner for key, inner in value.items()}
        return {SHORT.get(self.name, self.name): value}

    def _is_section(self, value: Any) -> bool:
        """Return True if a value has keys of the whole section: `model: {spec: …, weights: …}`."""
        return isinstance(value, dict) and self.name in Recipe.model_fields


Combination = tuple[Any, ...]
"""A value for each axis."""


def read_axes(matrix: Mapping[str, Any], where: str) -> tuple[Axis, ...]:
    """Return the axes of a matrix.

    Raises:
        RecipeError: it is empty, an axis has no list of values or one value twice, its key is unknown, or two axes set
            the same key.
    """
    if not matrix:
        raise RecipeError(
            f"{where}: the matrix is empty, so there is nothing to try",
            fix="Give at least one axis with its values, such as precision: [fp32, int8].",
        )
    axes = []
    for name, values in matrix.items():
        if not isinstance(values, list):
            raise RecipeError(
                f"{where}: matrix.{name} is {describe(values)}, not a list of values", fix=f"Write {name}: [A, B]."
            )
        if not values:
            raise RecipeError(f"{where}: matrix.{name} has no values", fix="List at least one, or remove the axis.")
        if name == HOST:
            _check_hosts(values, where)
        else:
            _check_key(name, where)
        for number, value in enumerate(values):
            if any(is_same(value, other) for other in values[:number]):
                raise RecipeError(f"{where}: matrix.{name} has {describe(value)} twice", fix="Remove one of them.")
        plain = Axis(name, (), tuple(values))
        keys = tuple(dict.fromkeys(key for value in values for key in plain.settings(value)))
        for key in keys:
            _refuse_unswept(key, f"{where}: matrix.{name}")
        axes.append(Axis(name, keys, tuple(values)))
    _check_disjoint(axes, where)
    return tuple(axes)


def combine(axes: Sequence[Axis], excluded: Sequence[Mapping[str, Any]], where: str) -> tuple[list[Combination], int]:
    """Return all combinations that are not excluded, the last axis changing fastest; and how many are excluded.

    Raises:
        RecipeError: an exclude names no axis or no value of it, all are excluded, or there are too many.
    """
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST_TRIALS:
        raise RecipeError(
            f"{where}: the matrix has {count:,} combinations, and at most {MOST_TRIALS:,} are tried",
            fix="Leave out an axis or values, or make several sweeps.",
        )
    by_name = {axis.name: (place, axis) for place, axis in enumerate(axes)}
    _check_excluded(by_name, excluded, where)
    every = list(itertools.product(*(axis.values for axis in axes)))
    left = [one for one in every if not any(_is_excluded(one, pattern, by_name) for pattern in excluded)]
    if not left:
        raise RecipeError(f"{where}: the excludes leave nothing of the matrix", fix="Exclude less.")
    return left, len(every) - len(left)


def describe(value: Any) -> str:
    """Return a value in a few words: a name as it is, a mapping as YAML on one line."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def is_same(value: Any, other: Any) -> bool:
    """Compare two values of YAML: true is not 1."""
    return type(value) is type(other) and bool(value == other)


def _is_excluded(
    combination: Sequence[Any], pattern: Mapping[str, Any], by_name: Mapping[str, tuple[int, Axis]]
) -> bool:
    """Return True if all values that an exclude names are those of a combination."""
    places = ((by_name[name], value) for name, value in pattern.items())
    return all(_matches(axis, combination[place], value) for (place, axis), value in places)


def _matches(axis: Axis, value: Any, excluded_value: Any) -> bool:
    """Return True if an exclude's value is this one, or a list with it."""
    if is_same(value, excluded_value):
        return True
    if not isinstance(excluded_value, list) or any(is_same(known, excluded_value) for known in axis.values):
        return False
    return any(is_same(value, one) for one in excluded_value)


def _check_excluded(by_name: Mapping[str, tuple[int, Axis]], excluded: Sequence[Mapping[str, Any]], where: str) -> None:
    for pattern in excluded:
        if not pattern:
            raise RecipeError(f"{where}: an exclude is empty, which excludes all", fix="Give it a value of an axis.")
        for name, excluded_value in pattern.items():
            if name not in by_name:
                raise RecipeError(
                    f"{where}: exclude names {name!r}, which is no axis{did_you_mean(name, list(by_name))}",
                    fix=f"The axes are {', '.join(by_name)}.",
                )
            axis = by_name[name][1]
            is_value = any(is_same(value, excluded_value) for value in axis.values)
            for part in excluded_value if isinstance(excluded_value, list) and not is_value else [excluded_value]:
                if not any(is_same(value, part) for value in axis.values):
                    known = [describe(value) for value in axis.values]
                    raise RecipeError(
                        f"{where}: exclude names {name}: {describe(part)}, which is no value of that axis"
                        f"{did_you_mean(describe(part), known)}",
                        fix=f"Its values are {', '.join(known)}.",
                    )


def _check_key(name: str, where: str) -> None:
    """Check that an axis names a key of a recipe.

    Raises:
        RecipeError: it does not; the nearest is named.
    """
    key = SHORT.get(name, name)
    section, _, rest = key.partition(".")
    if section in _OPEN and rest:
        return
    kind: type[BaseModel] | None = Recipe
    for part in key.split("."):
        if kind is None:
            return  # inside a mapping, such as model.kwargs
        if part not in kind.model_fields:
            known = [*SHORT, HOST, *list_keys()]
            raise RecipeError(
                f"{where}: unknown key {f'matrix.{name}'!r}{did_you_mean(name, known)}",
                fix=f"An axis is a key of a recipe (docs/recipes.md), or one of {', '.join((*SHORT, HOST))}.",
            )
        kind = _find_model(kind.model_fields[part].annotation)


def _check_hosts(values: Sequence[Any], where: str) -> None:
    for value in values:
        if not isinstance(value, str) or not value:
            raise RecipeError(
                f"{where}: matrix.{HOST} has {describe(value)}, which is no name of a host",
                fix=f"Write {HOST}: [{HERE}, NAME], with names of hosts.yaml or ssh://USER@HOST.",
            )


def _refuse_unswept(key: str, where: str) -> None:
    if any(key == other or key.startswith(f"{other}.") for other in _NOT_SWEPT):
        raise RecipeError(
            f"{where} sets {key}, which decides no result",
            fix="Write limits under `limits`, and the seconds of the bench under `recipe`.",
        )


def list_keys() -> list[str]:
    """Return the keys of a recipe with their sections: `precision.kind`."""
    return [
        f"{section}.{key}"
        for section, field in Recipe.model_fields.items()
        if (kind := _find_model(field.annotation)) is not None
        for key in kind.model_fields
    ]


def _find_model(annotation: object) -> type[BaseModel] | None:
    """Return the class with keys among the types that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if getattr(annotation, "__origin__", None) in (dict, list, tuple, Mapping):
        return None
    return next((kind for inner in get_args(annotation) if (kind := _find_model(inner)) is not None), None)


def _check_disjoint(axes: Sequence[Axis], where: str) -> None:
    for first, second in itertools.combinations(axes, 2):
        for key, other in itertools.product(first.keys, second.keys):
            if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                longer = max(key, other, key=len)
                raise RecipeError(
                    f"{where}: the axes {first.name} and {second.name} both set {longer}",
                    fix="Put the values of both into one axis, or remove one.",
                )


def overlay(raw: dict[str, Any], settings: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    """Return a copy of a recipe's keys in which dotted keys are set.

    Raises:
        RecipeError: a key would be inside of a value that is no mapping.
    """
    result = dict(raw)
    for key, value in settings:
        *sections, last = key.split(".")
        place = result
        for number, section in enumerate(sections, 1):
            inner = place.get(section)
            if inner is not None and not isinstance(inner, dict):
                outer = ".".join(sections[:number])
                raise RecipeError(
                    f"{key} cannot be set, because {outer} is {describe(inner)}, not a mapping",
                    fix=f"Write {outer} of the base recipe with its keys, or remove the axis.",
                )
            place[section] = dict(inner or {})
            place = place[section]
        place[last] = value
    return result


def write_out(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's keys with short forms written out, as an axis takes them: `target: openvino`."""
    full = {name: key.split(".") for name, key in SHORT.items()}
    return {
        name: {full[name][1]: value} if full.get(name, [""])[0] == name and isinstance(value, str) else value
        for name, value in raw.items()
    }
