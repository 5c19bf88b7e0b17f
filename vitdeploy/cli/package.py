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
_BACKENDS = ("native", "python")


@command(
    app,
    section=USE,
    examples=[
        "vitdeploy package deit --for triton \\\n    --backend python --ensemble -o repository",
        "vitdeploy package deit --for ovms -o repository",
        "vitdeploy package deit-engine --for deepstream -o deit-deepstream",
    ],
)
def package(
    console: Console,
    artifact: options.ArtifactFolder,
    serves: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="|".join(_CHOICES),
            callback=one_of(_CHOICES),
            help="What loads the package. triton: NVIDIA's Triton Inference Server. ovms: OpenVINO Model Server. "
            "deepstream: NVIDIA DeepStream's nvinfer, with classifiers on TensorRT.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="DIR", help="The new folder to write. It must not exist.", show_default=False
        ),
    ],
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(_BACKENDS),
            callback=one_of(_BACKENDS),
            help="For triton. native: Triton's own backend opens the engine. python: a program in Triton's Python "
            "backend opens it, for servers without the other. Default: native.",
            show_default=False,
        ),
    ] = None,
    ensemble: Annotated[
        bool,
        typer.Option(
            "--ensemble", help="For triton: also write an ensemble that takes image files and gives classes or boxes."
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For triton and ovms: the name of the model on the server. Default: that of the artifact's folder.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write what a server or a pipeline loads: the engine, its configuration and its labels.

    A package is written only if what loads it runs the artifact as it was exported. Otherwise the reason is an error,
    with the options of export that change it.
    """
    from vitdeploy import artifact as artifacts
    from vitdeploy.cli import views
    from vitdeploy.commands.package import package as run_package

    loaded = artifacts.load(artifact)
    given = {"backend": backend, "ensemble": ensemble or None, "name": name}
    packaged = run_package(loaded, serves, output, {key: value for key, value in given.items() if value is not None})
    if loaded.random_weights:
        console.warn("random weights: its answers mean nothing")
    console.show(packaged, *views.show_package(packaged))
