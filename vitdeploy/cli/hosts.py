"""`vitdeploy hosts`: the remote hosts and their state."""

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
        typer.Argument(
            metavar="[NAME|ssh://…]…", help="Only these. Default: all hosts in hosts.yaml.", show_default=False
        ),
    ] = None,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean", help="Remove files from the hosts, except those of running jobs and results not yet fetched."
        ),
    ] = False,
) -> None:
    """List your remote hosts: their hardware, the targets they support, and whether they are busy.

    Name hosts in the file hosts.yaml of your configuration folder, one per line: `NAME: ssh://USER@HOST[:PORT]`. If
    vitdeploy is not on a host's PATH, write a mapping: `NAME: {url: ssh://…, command: ~/venv/bin/vitdeploy}`. Further
    keys of the mapping: cache (a folder on the host), and two settings for the time of a job: power_mode (a number of
    nvpmodel) and lock_clocks (true).
    """
    from vitdeploy.cli import views
    from vitdeploy.remote.near.listing import list_hosts

    listing = list_hosts(names or [], console, clean=clean)
    console.show(listing, *views.hosts(listing))
