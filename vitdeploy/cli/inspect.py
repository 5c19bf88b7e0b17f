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
        bool, typer.Option("--sensitivity", help="Quantize each linear alone and show what it costs, worst first.")
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images for --sensitivity. Default: the recipe's.", show_default=False),
    ] = None,
) -> None:
    """Show the model's structure and the audit: attention fused k of n with reasons, precision of linears, sizes."""
    if calibration is not None and not sensitivity:
        raise typer.BadParameter("only --sensitivity looks at images.", param_hint="--calibration")
    from vitdeploy.cli import views
    from vitdeploy.commands.inspect.inspect import inspect as run_inspect

    result = run_inspect(artifact)
    if sensitivity:
        from vitdeploy.commands.inspect.sensitivity import sensitivity as run_sensitivity

        result = result.model_copy(update={"sensitivity": run_sensitivity(artifact, calibration, console)})
    console.show(result, *views.inspected(result))
