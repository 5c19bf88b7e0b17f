"""`vitdeploy device …`: the device's side of `--host`. JSON on stdin, one JSON object on stdout."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from vitdeploy.cli.app import app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console
from vitdeploy.cli.help import HelpGroup

if TYPE_CHECKING:
    from pydantic import BaseModel

    MessageT = TypeVar("MessageT", bound=BaseModel)

device = typer.Typer(
    cls=HelpGroup,
    help="The device's side of --host. vitdeploy itself calls these commands over SSH; each reads JSON on stdin.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(device, name="device", hidden=True)

Cache = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Where files and jobs are kept. Default: ~/.cache/vitdeploy.", show_default=False),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="The name that `start` returned.", show_default=False)]
Below = Annotated[str, typer.Argument(metavar="FOLDER", help="A folder of the job.", show_default=False)]


@command(device)
def probe(console: Console, cache: Cache = None) -> None:
    """Report the version, the targets, and the device's state."""
    from vitdeploy.remote.device.serve import Server

    console.show(Server(cache).probe())


@command(device)
def missing(console: Console, cache: Cache = None) -> None:
    """Report which of the files with the sha256 on stdin are missing here."""
    from vitdeploy.remote.device.serve import Server
    from vitdeploy.remote.messages import NeededBlobs

    console.show(Server(cache).store.find_missing(_read(NeededBlobs).blobs))


@command(device)
def put(console: Console, cache: Cache = None) -> None:
    """Store files from stdin: for each a line of JSON (sha256, bytes, offset), then its bytes from the offset on."""
    from vitdeploy.remote.device.serve import Server

    with os.fdopen(sys.stdin.fileno(), "rb", closefd=False) as stream:
        console.show({"whole": Server(cache).store.receive(stream)})


@command(device)
def start(console: Console, cache: Cache = None) -> None:
    """Start the job on stdin in the background, or find it if it runs already."""
    from vitdeploy.remote.device.serve import Server
    from vitdeploy.remote.messages import Job

    server = Server(cache)
    console.show(server.jobs.start(_read(Job), server.store))


@command(device)
def follow(
    console: Console,
    job: JobName,
    offset: Annotated[int, typer.Option(min=0, help="Bytes of the output to skip.")] = 0,
    cache: Cache = None,
) -> None:
    """Repeat the job's output on stderr until it ends, then report how it ended."""
    from vitdeploy.remote.device.serve import Server

    console.show(Server(cache).jobs.follow(job, offset, sys.stderr.fileno(), sys.stdin.buffer))


@command(device)
def results(console: Console, job: JobName, below: Below, cache: Cache = None) -> None:
    """List the files that the job left in FOLDER."""
    from vitdeploy.remote.device.serve import Server

    console.show(Server(cache).jobs.results(job, below))


@command(device)
def get(console: Console, job: JobName, below: Below, cache: Cache = None) -> None:
    """Write the contents of the files named on stdin to stdout, one after the other."""
    from vitdeploy.remote.device.serve import Server
    from vitdeploy.remote.messages import FileParts

    Server(cache).jobs.send(job, below, _read(FileParts), console.binary)


@command(device)
def take(console: Console, job: JobName, cache: Cache = None) -> None:
    """Record that the results were fetched, so that they may be removed."""
    from vitdeploy.remote.device.serve import Server

    Server(cache).jobs.take(job)
    console.show({"job": job})


@command(device)
def cancel(
    console: Console,
    job: JobName,
    attempt: Annotated[str, typer.Option(metavar="ID", help="An attempt to start it that may arrive late.")] = "",
    cache: Cache = None,
) -> None:
    """End the job, as Ctrl-C would."""
    from vitdeploy.remote.device.serve import Server

    Server(cache).jobs.cancel(job, attempt)
    console.show({"job": job})


@command(device)
def clean(console: Console, cache: Cache = None) -> None:
    """Remove the files and jobs that nothing running needs."""
    from vitdeploy.remote.device.serve import Server

    console.show({"freed_bytes": Server(cache).clean()})


@command(device)
def work(console: Console, job: JobName, cache: Cache = None) -> None:
    """Run one job. `start` runs this command as a process of its own."""
    from vitdeploy.remote.device.serve import Server

    Server(cache).work(job, console.warn)


def _read(kind: type[MessageT]) -> MessageT:
    """Read the message on stdin.

    Raises:
        UsageError: it is not of this kind.
    """
    from pydantic import ValidationError

    from vitdeploy.errors import UsageError

    try:
        return kind.model_validate_json(sys.stdin.buffer.read())
    except ValidationError as error:
        lines = str(error).splitlines()
        raise UsageError(
            f"stdin is not a valid {kind.__name__}: {' '.join(lines[1:3])}",
            fix="Install the same version of vitdeploy on both sides.",
        ) from None
