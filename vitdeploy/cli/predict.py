"""`vitdeploy predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import USE, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app, section=USE, examples=["vitdeploy predict deit cat.jpg dog.png"])
def predict(
    console: Console,
    artifact: options.ArtifactFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.", show_default=False)],
) -> None:
    """Run an artifact on images, and print its answers.

    Preprocessing and labels are the model's own. The task of the model decides the form of the answers: classes,
    regions, boxes, the range of a depth map, or a vector.
    """
    from vitdeploy.cli import views
    from vitdeploy.commands.predict import Deployed

    with Deployed(artifact) as deployed:
        predictions = deployed.predict(images)
        if deployed.artifact.random_weights:
            console.warn("random weights: these answers mean nothing")
    console.show({"predictions": predictions}, *views.show_predictions(predictions))
