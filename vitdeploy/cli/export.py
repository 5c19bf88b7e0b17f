"""`vitdeploy export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app)
def export(
    console: Console,
    model: options.Model,
    target: options.Target = None,
    device: options.Device = None,
    precision: options.Precision = None,
    max_drop: options.MaxDrop = None,
    weights: options.Weights = None,
    calibration: options.Calibration = None,
    batch: options.Batch = None,
    image_size: options.ImageSize = None,
    task: options.Task = None,
    input_form: options.InputForm = None,
    option: options.TargetOptions = None,
    dla: options.Dla = False,
    recipe: options.Recipe = None,
    host: options.Host = None,
    output: options.Out = None,
    force: options.Force = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check the numbers after every pass; name the first that breaks them."),
    ] = False,
    dump_graphs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the ONNX graph after each phase, for debugging.", show_default=False),
    ] = None,
    no_cache: options.NoCache = False,
) -> None:
    """Turn MODEL into a compiled artifact (or, for a device elsewhere, a bundle) with its audit.

    The folder appears whole or not at all. Default: ./MODEL-TARGET-PRECISION. With --host it is exported here and
    compiled there.
    """
    if target is None and recipe is None:
        raise typer.BadParameter("give it, or a --recipe that says it.", param_hint="--target")
    from vitdeploy import recipe as recipes
    from vitdeploy.cli import views
    from vitdeploy.commands.export import default_folder, read_recipe
    from vitdeploy.commands.export import export as run_export

    composed = recipes.compose(
        model,
        base=read_recipe(recipe) if recipe is not None else None,
        target=target,
        device="DLA" if dla else device,
        precision=precision,
        max_drop=max_drop,
        weights=weights,
        calibration=calibration,
        batch=batch,
        image_size=image_size,
        task=task,
        input_form=input_form,
    )
    composed = recipes.with_target_options(composed, recipes.target_options(option or ()))
    out, cache = output or default_folder(composed), options.open_cache(no_cache=no_cache)
    if host is not None:
        from vitdeploy.remote.near import commands

        summary = commands.export_for(
            commands.find(host), composed, out, console, force=force, verify=verify, cache=cache, dumps=dump_graphs
        )
    else:
        summary = run_export(composed, out, console, force=force, verify=verify, cache=cache, dumps=dump_graphs).summary
    console.show(summary, *views.exported(summary))
