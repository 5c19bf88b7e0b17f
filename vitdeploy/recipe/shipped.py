"""The recipes that come with vitdeploy."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vitdeploy import plugins
from vitdeploy import recipe as recipes
from vitdeploy.errors import RecipeError
from vitdeploy.recipe import Recipe


def find_recipe(name: str) -> Recipe:
    """The recipe in a file, or a shipped one."""
    if Path(name).is_file() or name.endswith((".yaml", ".yml")):
        return recipes.read(Path(name))
    return recipes.read(shipped_recipe(name)[0])


def shipped_recipes() -> dict[str, str]:
    """Names of the shipped recipes, each with its first comment line."""
    found = {}
    for path in sorted(_folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found[path.stem] = first.removeprefix("#").strip()
    return found


def shipped_recipe(name: str) -> tuple[Path, str]:
    """The file and the text of a shipped recipe.

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
    """Beside the package in a checkout, inside it in a wheel."""
    package = Path(str(resources.files("vitdeploy")))
    checkout = package.parent / "recipes"
    return checkout if (package.parent / "pyproject.toml").exists() and checkout.is_dir() else package / "recipes"
