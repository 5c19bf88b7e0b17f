"""`vitdeploy report`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import MEASURE, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console
from vitdeploy.errors import UsageError


@command(
    app, section=MEASURE, examples=["vitdeploy report deit", "vitdeploy report deit-int8 deit-fp32 -o report.html"]
)
def report(
    console: Console,
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR",
            help="The artifact of the report. Several artifacts, or the folder of a sweep, are shown side by side.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The HTML file to write. Default: report.html in DIR, or in --evidence. Of several artifacts: "
            "report.html in the current folder.",
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

    The page of several artifacts has their figures side by side. What was measured on another machine, device, data,
    number of samples, batch size, number of threads or version of the reference is a group of its own, because it may
    not be compared.
    """
    from vitdeploy.cli import views
    from vitdeploy.commands.side_by_side.page import is_side_by_side, report_side_by_side

    if is_side_by_side(artifacts):
        _refuse({"--data": data, "--model": model, "--trust-code": trust_code, "--evidence": evidence})
        several = report_side_by_side(artifacts, output, console)
        console.show(several, *views.show_report(several))
        return
    from vitdeploy.commands.report.report import report as run_report

    loaded = options.give_model(options.load_artifact(artifacts[0], evidence), model, trust_code=trust_code)
    cache = options.open_cache(no_cache=no_cache)
    page = run_report(loaded, output, console, images=images, data=data, cache=cache)
    console.show(page, *views.show_report(page))


def _refuse(given: Mapping[str, object]) -> None:
    """Refuse options of the page about one artifact.

    Raises:
        UsageError: one is given.
    """
    for name, value in given.items():
        if value:
            raise UsageError(f"{name} is for the page of one artifact", fix="Leave it out, or give one DIR.")
