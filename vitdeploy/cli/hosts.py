"""`vitdeploy hosts`."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli.app import LOOK_UP, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(
    app,
    section=LOOK_UP,
    examples=["vitdeploy hosts", "vitdeploy hosts ssh://me@jetson", "vitdeploy hosts jetson --clean"],
)
def hosts(
    console: Console,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME|ssh://…]…",
            help="Names of your hosts, or addresses. Default: all hosts in hosts.yaml.",
            show_default=False,
        ),
    ] = None,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="Remove vitdeploy's cached files there, except those of running jobs and results not yet fetched.",
        ),
    ] = False,
) -> None:
    """Show your remote hosts: their hardware, their targets, and whether they are busy.

    Name hosts in the file hosts.yaml of your configuration folder, one per line: `NAME: ssh://USER@HOST`. If vitdeploy
    is not on a host's PATH, write `NAME: {url: ssh://USER@HOST, command: ~/venv/bin/vitdeploy}`.

    More keys: cache, a folder on the host; power_mode (a number of nvpmodel) and lock_clocks (true), which are set
    while a job runs.
    """
    from vitdeploy.cli import views
    from vitdeploy.remote.near.listing import list_hosts

    listing = list_hosts(names or [], console, clean=clean)
    console.show(listing, *views.show_hosts(listing))
