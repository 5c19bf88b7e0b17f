"""The application, and the head of `vitdeploy --help`."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli.help import HelpGroup
from vitdeploy.version import __version__

# Sections of the list of commands.
MAKE = "Make an artifact"
MEASURE = "Measure and judge it"
USE = "Use it"
LOOK_UP = "Look up"

app = typer.Typer(
    name="vitdeploy",
    cls=HelpGroup,
    help="Get Vision Transformers onto edge devices: export, fuse, quantize, compile, and prove the result.",
    epilog="`vitdeploy run demo` shows all steps with a small model. `vitdeploy COMMAND --help` has examples.\n\n"
    "Exit codes: 0 done, or the gate passed · 1 error, or the gate failed · 2 wrong usage · 3 the gate could not "
    "decide · 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"vitdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Get Vision Transformers onto edge devices: export, fuse, quantize, compile, and prove the result."""
