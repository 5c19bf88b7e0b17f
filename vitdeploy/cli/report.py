"""`vitdeploy report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import MEASURE, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(
    app, section=MEASURE, examples=["vitdeploy report deit", "vitdeploy report deit-int8 deit-fp32 -o report.html"]
)
def report(
    console: Console,
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR",
            help="The artifact of the report. Further artifacts appear in its plot of speed against accuracy.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The HTML file to write. Default: report.html in the first DIR, or in --evidence.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images for attention maps and merged tokens. Default: the recipe's for evaluation or calibration.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(metavar="N", min=0, max=8, help="The number of images with attention maps and merged tokens.")
    ] = 3,
    model: options.ModelAgain = None,
    trust_code: options.TrustCode = False,
    evidence: options.EvidenceFolder = None,
    no_cache: options.NoCache = False,
) -> None:
    """Write all evidence into one HTML page, which needs no network.

    The page has the verdict of gate and a section for each kind of evidence. Empty sections name the command to run.
    """
    from vitdeploy.cli import views
    from vitdeploy.commands.report.report import report as run_report

    loaded = [options.load_artifact(path, None if number else evidence) for number, path in enumerate(artifacts)]
    loaded[0] = options.give_model(loaded[0], model, trust_code=trust_code)
    cache = options.open_cache(no_cache=no_cache)
    page = run_report(loaded, output, console, images=images, data=data, cache=cache)
    console.show(page, *views.show_report(page))
