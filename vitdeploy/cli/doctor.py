"""`vitdeploy doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.app import LOOK_UP, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console

_SECONDS = 600.0


@command(
    app, section=LOOK_UP, examples=["vitdeploy doctor", "vitdeploy doctor --json", "vitdeploy doctor --record DIR"]
)
def doctor(
    console: Console,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Build and run three small models with the TensorRT of this machine, and write what it does into a "
            "new folder: versions, logs, times, power rails, clocks, failures. Names, addresses and paths are left "
            "out. Nothing is sent by itself.",
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1.0, help="The time limit of --record. Default: 600.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the recording that is in DIR.")] = False,
) -> None:
    """Show which targets can run on this machine, and how to fix or install what cannot."""
    from vitdeploy.cli import views
    from vitdeploy.commands.doctor import doctor as run_doctor
    from vitdeploy.frozen import replace

    if record is None and (seconds is not None or force):
        raise typer.BadParameter("--seconds and --force belong to --record DIR.")
    recorded = None
    if record is not None:
        from vitdeploy.commands.board.record import record as record_board

        recorded = record_board(record, _SECONDS if seconds is None else seconds, console, force=force)
    result = replace(run_doctor(), recording=recorded)
    console.show(result, *views.show_diagnosis(result))
