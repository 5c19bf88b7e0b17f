"""`vitdeploy compile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app, "compile")
def compile_(
    console: Console,
    bundle: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", help="A folder that export could not compile here.", show_default=False),
    ],
    option: options.TargetOptions = None,
    dla: options.Dla = False,
    host: options.Host = None,
    output: options.Out = None,
    force: options.Force = False,
) -> None:
    """Compile a bundle on this device (or on --host). By default the artifact takes the place of the bundle."""
    from vitdeploy import recipe as recipes
    from vitdeploy.artifact import load as load_artifact
    from vitdeploy.cli import views
    from vitdeploy.commands.compile import compile_bundle

    loaded = load_artifact(bundle)
    if host is not None:
        from vitdeploy.remote.near import commands

        flags: dict[str, commands.Flag] = {"option": option, "dla": dla}
        summary = commands.compile_on(commands.find(host), loaded, output, console, force=force, flags=flags)
    else:
        given = recipes.target_options(option or ()) | ({"device": "DLA"} if dla else {})
        summary = compile_bundle(loaded, output, console, force=force, options=given).summary
    console.show(summary, *views.exported(summary))
