"""`vitdeploy package`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy import plugins
from vitdeploy.cli import options
from vitdeploy.cli.app import USE, app
from vitdeploy.cli.command import command, one_of
from vitdeploy.cli.console import Console

_CHOICES = plugins.names_in("commands/package")


@command(app, section=USE, examples=["vitdeploy package deit-engine --for deepstream -o deit-deepstream"])
def package(
    console: Console,
    artifact: options.ArtifactFolder,
    serves: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="|".join(_CHOICES),
            callback=one_of(_CHOICES),
            help="What loads the package. deepstream: NVIDIA DeepStream's nvinfer, with classifiers on TensorRT.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="DIR", help="The new folder to write. It must not exist.", show_default=False
        ),
    ],
) -> None:
    """Write what a server or a pipeline loads: the engine, its configuration and its labels.

    A package is written only if what loads it prepares images as the model needs them. Otherwise the reason is an
    error, with the options of export that change it.
    """
    from vitdeploy import artifact as artifacts
    from vitdeploy.cli import views
    from vitdeploy.commands.package import package as run_package

    loaded = artifacts.load(artifact)
    packaged = run_package(loaded, serves, output)
    if loaded.random_weights:
        console.warn("random weights: its answers mean nothing")
    console.show(packaged, *views.show_package(packaged))
