"""`vitdeploy report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


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
    no_cache: options.NoCache = False,
) -> None:
    """Write one self-contained HTML page with the verdict and all evidence, and what is missing of it."""
    from vitdeploy.artifact import load as load_artifact
    from vitdeploy.cli import views
    from vitdeploy.commands.report.report import report as run_report

    loaded = [load_artifact(path) for path in artifacts]
    cache = options.open_cache(no_cache=no_cache)
    page = run_report(loaded, output, console, images=images, data=data, cache=cache)
    console.show(page, *views.reported(page))
