"""`vitdeploy hosts`."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli.app import app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app)
def hosts(
    console: Console,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|ssh://…]…", help="Only these. Default: all named ones.", show_default=False),
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove files there that no job needs, and whose results were fetched.")
    ] = False,
) -> None:
    """List your remote hosts and their state: what they are, what runs there, who is at work on them.

    Hosts are named in hosts.yaml of your configuration folder, one a line: `NAME: ssh://USER@HOST[:PORT]`. Where
    vitdeploy is not on the PATH there, a mapping: `NAME: {url: ssh://…, command: ~/venv/bin/vitdeploy}`. Its other
    keys: cache (a folder there), power_mode (of nvpmodel) and lock_clocks (true), set while something is timed.
    """
    from vitdeploy.cli import views
    from vitdeploy.remote.near.listing import listing

    found = listing(names or [], console, clean=clean)
    console.show(found, *views.hosts(found))
