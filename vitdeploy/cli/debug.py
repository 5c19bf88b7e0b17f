"""`vitdeploy debug`."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app)
def debug(
    console: Console,
    artifact: options.Artifact,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images; labels are not needed. Default: the recipe's.", show_default=False),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many to look at.")] = 8,
    no_cache: options.NoCache = False,
) -> None:
    """Find where FP32 and the artifact part: tensor by tensor at block ends, then inside the first that is off."""
    from vitdeploy.artifact import load as load_artifact
    from vitdeploy.commands.debug import debug as run_debug
    from vitdeploy.render import tables

    cache = options.open_cache(no_cache=no_cache)
    divergence = run_debug(load_artifact(artifact), data, console, images=images, cache=cache)
    console.show(divergence, tables.divergence(divergence))
