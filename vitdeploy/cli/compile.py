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
        Path, typer.Argument(metavar="BUNDLE", help="A folder that export left at stage bundle.", show_default=False)
    ],
    option: options.TargetOptions = None,
    dla: options.Dla = False,
    host: options.Host = None,
    output: options.Out = None,
    force: options.Force = False,
) -> None:
    """Finish on this device (or --host) what export could only prepare elsewhere. Default: in the bundle's folder."""
    from vitdeploy import recipe as recipes
    from vitdeploy.cli import views
    from vitdeploy.commands.compile import compile_bundle

    given = recipes.target_options(option or ()) | ({"device": "DLA"} if dla else {})
    if host is not None:
        from vitdeploy.remote.near import commands

        flags: dict[str, commands.Flag] = {"option": option, "dla": dla}
        result = commands.compile_on(commands.find(host), bundle, output, console, force=force, flags=flags)
    else:
        result = compile_bundle(bundle, output, console, force=force, options=given)
    console.show(result, *views.exported(result))
