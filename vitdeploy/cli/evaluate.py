"""`vitdeploy eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app, "eval")
def eval_(
    console: Console,
    artifact: options.Artifact,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images in the form of the task (docs/tasks.md): one sub-folder per class, images/ with "
            "masks/, depth/ or annotations.json, an .npz, or demo:digits. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many samples.", show_default=False)] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What the reference answered elsewhere, from --save-reference: for devices without PyTorch.",
            show_default=False,
        ),
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Only let the reference answer, and keep that.", show_default=False),
    ] = None,
    host: options.Host = None,
) -> None:
    """Measure accuracy against FP32 PyTorch on the same samples, paired.

    With --host the reference answers here, the artifact there.
    """
    from vitdeploy.artifact import load as load_artifact
    from vitdeploy.commands.evaluate import evaluate as commands_evaluate
    from vitdeploy.render import tables

    if (reference is not None) + (save_reference is not None) + (host is not None) > 1:
        raise typer.BadParameter("give only one of them.", param_hint="--reference, --save-reference and --host")
    loaded = load_artifact(artifact)
    if save_reference is not None:
        saved = commands_evaluate.save_reference(loaded, data, save_reference, console, limit=limit)
        console.show(saved, f"saved {saved.samples:,} answers of {saved.name} in {save_reference}")
        return
    if host is not None:
        from vitdeploy.remote.near import commands

        evaluation = commands.evaluate_on(commands.find(host), loaded, data, console, limit=limit)
    else:
        evaluation = commands_evaluate.evaluate(loaded, data, console, limit=limit, reference=reference)
    console.show(evaluation, tables.evaluation(evaluation))
