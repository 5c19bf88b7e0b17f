"""The recipes that come with vitdeploy."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from vitdeploy import plugins
from vitdeploy import recipe as recipes
from vitdeploy.errors import RecipeError
from vitdeploy.recipe import Recipe


def find_recipe(name: str, anchor_model: Callable[[str, Path], str]) -> Recipe:
    """Read the recipe in the file `name`, or the shipped recipe of that name; see `recipe.read`."""
    if Path(name).is_file() or name.endswith((".yaml", ".yml")):
        return recipes.read(Path(name), anchor_model)
    return recipes.read(shipped_recipe(name)[0], anchor_model)


def shipped_recipes() -> dict[str, str]:
    """Return the names of the shipped recipes, each with its first comment line."""
    comments = {}
    for path in sorted(_folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        comments[path.stem] = first.removeprefix("#").strip()
    return comments


def shipped_recipe(name: str) -> tuple[Path, str]:
    """Return the file and the text of a shipped recipe.

    Raises:
        RecipeError: there is none of that name; the nearest is named.
    """
    path = _folder() / f"{name}.yaml"
    known = sorted(shipped_recipes())
    if name not in known:
        raise RecipeError(
            f"there is no recipe {name!r}{plugins.did_you_mean(name, known)}", fix=f"Shipped are {', '.join(known)}."
        )
    return path, path.read_text(encoding="utf-8")


def _folder() -> Path:
    """Return the folder of recipes: beside the package in a checkout, inside it in a wheel."""
    package = Path(str(resources.files("vitdeploy")))
    checkout = package.parent / "recipes"
    return checkout if (package.parent / "pyproject.toml").exists() and checkout.is_dir() else package / "recipes"
