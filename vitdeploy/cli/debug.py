"""`vitdeploy debug`."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import MEASURE, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app, section=MEASURE, examples=["vitdeploy debug deit --data images/"])
def debug(
    console: Console,
    artifact: options.ArtifactFolder,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images: a folder, an .npz, shards, or demo:digits. Labels are not needed. Default: the recipe's; on "
            "a GPU those of the bundle.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[int, typer.Option(metavar="N", min=1, help="The number of images to compare on.")] = 8,
    model: options.ModelAgain = None,
    trust_code: options.TrustCode = False,
    no_cache: options.NoCache = False,
) -> None:
    """Find the block and the layer at which FP32 and the artifact diverge.

    The outputs of all blocks are compared on the same images, then the layers inside the first block that diverges.
    On a device with a GPU, an engine is compared with the values that its bundle brought.
    """
    from vitdeploy.artifact import load as load_artifact
    from vitdeploy.commands.debug import debug as run_debug
    from vitdeploy.render import divergence_tables

    cache = options.open_cache(no_cache=no_cache)
    loaded = options.give_model(load_artifact(artifact), model, trust_code=trust_code)
    divergence = run_debug(loaded, data, console, images=images, cache=cache)
    console.show(divergence, divergence_tables.divergence(divergence))
