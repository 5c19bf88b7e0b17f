"""`vitdeploy run`."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import app
from vitdeploy.cli.command import EXIT_CODES, command
from vitdeploy.cli.console import Console


@command(app, "run")
def run_(
    console: Console,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.", show_default=False)
    ],
    weights: options.Weights = None,
    calibration: options.Calibration = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Labelled images to evaluate on.", show_default=False)
    ] = None,
    output: options.Out = None,
    force: options.Force = False,
    no_cache: options.NoCache = False,
) -> None:
    """Do all of it: export, inspect, eval, bench, gate, report. Exits like gate."""
    from vitdeploy.cli import views
    from vitdeploy.commands.run import run as run_all

    cache = options.open_cache(no_cache=no_cache)
    outcome = run_all(
        recipe, output, console, weights=weights, calibration=calibration, data=data, force=force, cache=cache
    )
    console.show(outcome, *views.outcome(outcome))
    raise typer.Exit(EXIT_CODES[outcome.gate.verdict])
