"""`vitdeploy inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app)
def inspect(
    console: Console,
    artifact: options.Artifact,
    sensitivity: Annotated[
        bool,
        typer.Option("--sensitivity", help="Quantize each linear alone and show what it costs, worst first."),
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images for --sensitivity. Default: the recipe's.", show_default=False),
    ] = None,
    no_cache: options.NoCache = False,
) -> None:
    """Show the structure of the model, and the audit: fused attention with reasons, precision of linears, sizes."""
    if calibration is not None and not sensitivity:
        raise typer.BadParameter("only --sensitivity looks at images.", param_hint="--calibration")
    from vitdeploy.artifact import load as load_artifact
    from vitdeploy.cli import views
    from vitdeploy.commands.inspect.inspect import inspect as run_inspect
    from vitdeploy.frozen import replace

    loaded = load_artifact(artifact)
    audit = run_inspect(loaded)
    if sensitivity:
        from vitdeploy.commands.inspect.sensitivity import measure_sensitivity

        cache = options.open_cache(no_cache=no_cache)
        audit = replace(audit, sensitivity=measure_sensitivity(loaded, calibration, console, cache=cache))
    console.show(audit, *views.inspected(audit))
