"""Recipes from YAML files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitdeploy import yaml12
from vitdeploy.errors import RecipeError
from vitdeploy.frozen import parse, replace
from vitdeploy.plain_files import read_plain
from vitdeploy.recipe.inputs import InputSpec
from vitdeploy.recipe.prompts import read_prompts
from vitdeploy.recipe.schema import Recipe

_UTF8_BYTES = 4  # a character


def read(path: Path, anchor_model: Callable[[str, Path], str] = lambda spec, _: spec) -> Recipe:
    """Read the recipe in the YAML file `path`; paths in it are relative to the file.

    Args:
        path: the file.
        anchor_model: takes a model spec and the recipe's folder, and makes relative paths in the spec absolute:
            `sources.anchor`. Only the sources know which specs have paths in them.

    Raises:
        RecipeError: the file is missing, is not YAML, or does not fit the schema.
    """
    try:
        raw = read_mapping(path, "A recipe has at least the keys model and target.")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}", fix="Run `vitdeploy recipes` for the shipped ones.") from None
    return build(raw, path.resolve().parent, anchor_model, where=str(path))


def read_mapping(path: Path, fix: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; `fix` is what to do if there is something else in it.

    Raises:
        FileNotFoundError: there is no such file.
        RecipeError: it cannot be read, is not YAML, or is not a mapping.
    """
    try:
        raw = yaml12.loads(read_plain(path, yaml12.MAX_CHARACTERS * _UTF8_BYTES).decode())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", fix="Give a recipe file.") from None
    except ValueError as error:  # not UTF-8, or not YAML
        problem = " ".join(str(error).split())[:300]
        raise RecipeError(f"{path} is not readable YAML: {problem}", fix="Fix the YAML.") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is not a mapping", fix=fix)
    return raw


def build(raw: dict[str, Any], folder: Path, anchor_model: Callable[[str, Path], str], *, where: str) -> Recipe:
    """Return the recipe of keys and values, in which relative paths are taken from `folder`.

    Args:
        raw: keys and values.
        folder: where relative paths begin.
        anchor_model: see `read`.
        where: the start of an error message.

    Raises:
        RecipeError: it does not fit the schema.
    """
    recipe = parse(Recipe, _with_prompts(raw, folder), where=where)
    recipe = _anchor(recipe, folder)
    return replace(recipe, model=replace(recipe.model, spec=anchor_model(recipe.model.spec, folder)))


def _with_prompts(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the recipe with the prompts of the file that it names: an artifact has to know them without it."""
    model = raw.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("prompts"), str):
        return raw
    return {**raw, "model": {**model, "prompts": read_prompts(model["prompts"], folder)}}


def _anchor(recipe: Recipe, folder: Path) -> Recipe:
    """Make paths relative to the recipe's folder absolute; names with a scheme (`demo:`) stay."""

    def anchor(value: str | None) -> str | None:
        return value if value is None or _is_name(value) else str(folder / value)

    model, data, bench, gate = recipe.model, recipe.data, recipe.bench, recipe.gate
    if model.weights not in (None, "pretrained", "random"):
        model = replace(model, weights=str(folder / str(model.weights)))
    if model.labels not in (None, "imagenet"):
        model = replace(model, labels=str(folder / str(model.labels)))
    bind = {name: str(folder / value) if isinstance(value, str) else value for name, value in model.bind.items()}
    inputs = {name: _anchor_input(spec, folder) for name, spec in model.inputs.items()}
    model = replace(model, bind=bind, inputs=inputs)
    data = replace(data, calibration=anchor(data.calibration), evaluation=anchor(data.evaluation))
    if (folder / bench.against).is_dir():
        bench = replace(bench, against=str(folder / bench.against))
    if gate.require_signed is not None:
        gate = replace(gate, require_signed=str(folder / gate.require_signed))
    return replace(recipe, model=model, data=data, bench=bench, gate=gate)


def _anchor_input(spec: InputSpec, folder: Path) -> InputSpec:
    if isinstance(spec.value, str):
        return replace(spec, value=str(folder / spec.value))
    return spec if spec.examples is None else replace(spec, examples=str(folder / spec.examples))


def _is_name(value: str) -> bool:
    return bool(re.match(r"[a-z0-9-]+:", value))
