"""`vitdeploy recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli.app import LOOK_UP, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app, section=LOOK_UP, examples=["vitdeploy recipes", "vitdeploy recipes demo > my-recipe.yaml"])
def recipes(
    console: Console,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The recipe to print. Default: list all.", show_default=False)
    ] = None,
) -> None:
    """List the recipes that come with vitdeploy, or print one."""
    from vitdeploy.cli import views
    from vitdeploy.recipe.shipped import shipped_recipe, shipped_recipes

    if name is None:
        listed = shipped_recipes()
        console.show({"recipes": listed}, *views.show_recipes(listed))
    else:
        path, text = shipped_recipe(name)
        console.show_text({"name": name, "path": str(path), "recipe": text}, text)
