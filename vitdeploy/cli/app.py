"""The application: what `vitdeploy --help` begins with."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy import __version__

app = typer.Typer(
    name="vitdeploy",
    help="Get Vision Transformers onto edge devices: export, fuse, quantize, compile, and prove the result.",
    epilog="Exit codes: 0 done or gate passed · 1 failed · 2 wrong usage · 3 the gate could not decide · "
    "130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vitdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Get Vision Transformers onto edge devices: export, fuse, quantize, compile, and prove the result."""
