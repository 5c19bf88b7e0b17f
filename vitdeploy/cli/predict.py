"""`vitdeploy predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app)
def predict(
    console: Console,
    artifact: options.Artifact,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files.", show_default=False)],
) -> None:
    """Run it on images, with the model's own preprocessing and labels: classes, regions, boxes, depth or vectors."""
    from vitdeploy.cli import views
    from vitdeploy.commands.predict import Deployed

    with Deployed(artifact) as deployed:
        predictions = deployed.predict(images)
        if deployed.artifact.random_weights:
            console.warn("random weights: these answers mean nothing")
    console.show({"predictions": predictions}, *views.predictions(predictions))
