"""`vitdeploy run`."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli import export_options, model_options, options
from vitdeploy.cli.app import MAKE, app
from vitdeploy.cli.command import EXIT_CODES, command
from vitdeploy.cli.console import Console


@command(
    app,
    "run",
    section=MAKE,
    examples=[
        "vitdeploy run demo",
        "vitdeploy run deit-tiny-openvino-int8 \\\n    --calibration images/ --data val/ -o deit",
        "vitdeploy run my-recipe.yaml",
        "vitdeploy run my-recipe.yaml --log mlflow:http://localhost:5000",
    ],
)
def run_(
    console: Console,
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A recipe file (YAML), or a name from vitdeploy recipes.", show_default=False
        ),
    ],
    weights: model_options.Weights = None,
    calibration: export_options.CalibrationImages = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images for eval: one sub-folder per class, or as docs/tasks.md says. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    output: export_options.OutputFolder = None,
    force: export_options.Force = False,
    log: options.LogTo = None,
    log_artifact: options.LogArtifact = False,
    no_cache: options.NoCache = False,
) -> None:
    """Do all steps of a recipe: export, inspect, eval, bench, gate, report.

    Options override the recipe. The exit code is that of gate: 0 pass, 1 fail, 3 not decided.
    """
    from vitdeploy.cli import views
    from vitdeploy.commands.run import run as run_all

    cache = options.open_cache(no_cache=no_cache)
    logs = options.open_logs(log, console, whole=log_artifact)
    outcome = run_all(
        recipe,
        output,
        console,
        weights=weights,
        calibration=calibration,
        data=data,
        force=force,
        cache=cache,
        logs=logs,
    )
    console.show(outcome, *views.show_outcome(outcome))
    raise typer.Exit(EXIT_CODES[outcome.gate.verdict])
