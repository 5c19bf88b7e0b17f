"""Commands that use what is there: predict, run, report, doctor, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import app
from vitdeploy.cli.common import EXIT_CODES, command
from vitdeploy.cli.console import Console


@command(app)
def predict(
    console: Console,
    artifact: options.Artifact,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files.", show_default=False)],
) -> None:
    """Run it on images, with the model's own preprocessing and labels: classes, regions, boxes, depth or vectors."""
    from vitdeploy.cli import views
    from vitdeploy.pipeline.predict import Deployed

    with Deployed(artifact) as deployed:
        predictions = deployed.predict(images)
        if deployed.artifact.random_weights:
            console.warn("random weights: these answers mean nothing")
    console.show({"predictions": predictions}, *views.predictions(predictions))


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
) -> None:
    """Do all of it: export, inspect, eval, bench, gate, report. Exits like gate."""
    from vitdeploy.cli import views
    from vitdeploy.pipeline.run import run as run_all

    result = run_all(recipe, output, console, weights=weights, calibration=calibration, data=data, force=force)
    console.show(result, *views.outcome(result))
    raise typer.Exit(EXIT_CODES[result.gate.verdict])


@command(app)
def report(
    console: Console,
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR…",
            help="The artifact to report on, and others to set beside it in speed against accuracy.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The page. Default: report.html in the first DIR.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images to compare attention on. Default: what it was evaluated or calibrated on.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=0, max=8, help="Images whose attention is shown; 0 for none.")] = 3,
) -> None:
    """Write one self-contained HTML page with the verdict and all evidence, and what is missing of it."""
    from vitdeploy.cli import views
    from vitdeploy.pipeline.reporting import report as run_report

    result = run_report(artifacts, output, console, images=images, data=data)
    console.show(result, *views.reported(result))


@command(app)
def doctor(console: Console) -> None:
    """Say what can run here, what cannot, why, and the fix."""
    from vitdeploy.cli import views
    from vitdeploy.pipeline.doctor import doctor as run_doctor

    result = run_doctor()
    console.show(result, *views.doctor(result))


@command(app)
def recipes(
    console: Console,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this one.", show_default=False)] = None,
) -> None:
    """List the shipped recipes, or print one."""
    from vitdeploy.cli import views
    from vitdeploy.pipeline.run import shipped_recipe, shipped_recipes

    if name is None:
        listed = shipped_recipes()
        console.show({"recipes": listed}, *views.recipes(listed))
    else:
        path, text = shipped_recipe(name)
        console.show({"name": name, "path": str(path), "recipe": text}, text.rstrip())
