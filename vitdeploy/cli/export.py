"""`vitdeploy export`."""

from __future__ import annotations

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
        bool, typer.Option("--verify", help="Check the numbers after every pass; name the first that breaks.")
    ] = False,
) -> None:
    """Turn MODEL into a compiled artifact (or, for a device elsewhere, a bundle) with its audit.

    The folder appears whole or not at all. Default: ./MODEL-TARGET-PRECISION. With --host it is exported here and
    compiled there.
    """
    if target is None and recipe is None:
        raise typer.BadParameter("give it, or a --recipe that says it.", param_hint="--target")
    from vitdeploy import recipe as recipes
    from vitdeploy.cli import views
    from vitdeploy.commands.export import default_folder
    from vitdeploy.commands.export import export as run_export

    settled = recipes.compose(
        model,
        base=recipes.read(recipe) if recipe is not None else None,
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
    settled = recipes.with_target_options(settled, recipes.target_options(option or ()))
    out = output or default_folder(settled)
    if host is not None:
        from vitdeploy.remote.near import commands

        result = commands.export_for(commands.find(host), settled, out, console, force=force, verify=verify)
    else:
        result = run_export(settled, out, console, force=force, verify=verify)
    console.show(result, *views.exported(result))
