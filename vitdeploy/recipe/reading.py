"""Recipes from YAML files."""

from __future__ import annotations

import re
from pathlib import Path

from vitdeploy import yaml12
from vitdeploy.errors import RecipeError
from vitdeploy.frozen import parse
from vitdeploy.recipe.schema import OPPONENTS, Recipe


def read(path: Path) -> Recipe:
    """The recipe in the YAML file `path`; paths in it are relative to the file.

    Raises:
        RecipeError: the file is missing, is not YAML, or does not fit the schema.
    """
    try:
        raw = yaml12.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}", fix="Run `vitdeploy recipes` for the shipped ones.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", fix="Give a recipe file.") from None
    except ValueError as error:  # not UTF-8, or not YAML
        problem = " ".join(str(error).split())[:300]
        raise RecipeError(f"{path} is not readable YAML: {problem}", fix="Mend the file.") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is not a mapping", fix="A recipe has at least the keys model and target.")
    recipe = parse(Recipe, raw, where=str(path))
    return _anchor(recipe, path.resolve().parent)


def _anchor(recipe: Recipe, base: Path) -> Recipe:
    """Paths relative to the recipe's folder become absolute; names with a scheme (`timm:`, `demo:`) stay."""

    def path(value: str | None) -> str | None:
        return None if value is None or _is_name(value) else str(base / value)

    model = recipe.model
    spec = model.spec
    if spec.endswith((".onnx", ".pt2")):
        spec = str(base / spec)
    elif spec.startswith("python:") and spec.rpartition(":")[0].endswith(".py"):
        file, _, factory = spec.removeprefix("python:").rpartition(":")
        spec = f"python:{base / file}:{factory}"
    elif spec.startswith("hf:") and (base / spec[3:]).is_dir():
        spec = f"hf:{base / spec[3:]}"
    weights = model.weights if model.weights in (None, "pretrained", "random") else str(base / str(model.weights))
    paths = {name: path(getattr(recipe.data, name)) for name in ("calibration", "evaluation")}
    data = recipe.data.model_copy(update={name: value for name, value in paths.items() if value is not None})
    bench = recipe.bench
    if bench.against not in OPPONENTS:
        bench = bench.model_copy(update={"against": str(base / bench.against)})
    return recipe.model_copy(
        update={"model": model.model_copy(update={"spec": spec, "weights": weights}), "data": data, "bench": bench}
    )


def _is_name(value: str) -> bool:
    return bool(re.match(r"[a-z0-9-]+:", value))
