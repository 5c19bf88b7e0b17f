"""`vitdeploy sweep`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import MAKE, app
from vitdeploy.cli.command import command, valid_for
from vitdeploy.cli.console import Console

_FAILED = 1


def _check_budget(text: str) -> None:
    from vitdeploy.commands.sweep.budget import parse_duration

    parse_duration(text)


def _check_pick(text: str) -> None:
    from vitdeploy.commands.sweep.pick import parse_pick

    parse_pick(text)


def _check_ray(address: str) -> None:
    from vitdeploy.cluster import check_address

    check_address(address)


@command(
    app,
    "sweep",
    section=MAKE,
    examples=[
        "vitdeploy sweep sweep.yaml --dry-run",
        "vitdeploy sweep sweep.yaml --budget 2h",
        "vitdeploy sweep sweep.yaml --ray auto",
        'vitdeploy sweep sweep.yaml \\\n    --pick "min latency where drop <= 0.5 and size <= 20MiB" --to best',
        "vitdeploy sweep sweep.yaml \\\n    --log 'mlflow:http://localhost:5000#digits'",
    ],
)
def sweep_(
    console: Console,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="SWEEP.yaml", help="One base recipe, and a matrix of values for its keys.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="The folder of the sweep. Default: named after the file. A sweep that is there already is continued.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only list the trials, those that are finished, and the time that is left."),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            callback=valid_for(_check_budget),
            help="The time to spend, such as 90m or 2h. Every bench is then short at first, and only those that may be "
            "on the front get the recipe's time.",
            show_default=False,
        ),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="EXPR",
            callback=valid_for(_check_pick),
            help='Choose a valid trial: "min latency where drop <= 0.5 and size <= 20MiB".',
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder to copy the chosen artifact to. Default: picked, in the folder of the sweep.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact at --to.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|HOST:PORT",
            callback=valid_for(_check_ray),
            help="Run the trials on the nodes of a Ray cluster: the one that this machine is a node of, or the one "
            "whose head is at HOST:PORT.",
            show_default=False,
        ),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed trials again.")] = False,
    log: options.LogTo = None,
    log_artifact: options.LogArtifact = False,
    no_cache: options.NoCache = False,
) -> None:
    """Try a matrix of models, precisions, targets and hosts, and compare the results.

    Each trial is an export with its accuracy and latency, measured here or on a device over SSH. Trials that are
    finished are not done again, so a sweep that was interrupted or extended goes on. The results are a table,
    results.csv, results.jsonl and sweep.html.
    """
    from vitdeploy.commands.sweep.budget import parse_duration
    from vitdeploy.commands.sweep.sweep import sweep as run_sweep
    from vitdeploy.commands.sweep.work import SweepPlan
    from vitdeploy.remote.near.sweep_host import connect_host
    from vitdeploy.render import sweep_tables

    plan = SweepPlan(
        dry_run=dry_run,
        budget_s=None if budget is None else parse_duration(budget),
        retry=retry,
        pick=pick,
        to=to,
        force=force,
        cache=options.open_cache(no_cache=no_cache),
        alone=_bench_lock(file, console),
        logs=options.open_logs(None if dry_run else log, console, whole=log_artifact and not dry_run),
        ray=ray,
        find_host=partial(connect_host, progress=console),
    )
    result = run_sweep(file, output, console, plan)
    console.show(result, *sweep_tables.sweep(result))
    if not dry_run and not (result.counts.get("done") or result.counts.get("bundle")):
        raise typer.Exit(_FAILED)


def _bench_lock(file: Path, console: Console) -> Callable[[], AbstractContextManager[object]]:
    """Return what holds the lock of this machine, which jobs of `--host` take too: one measurement at a time."""

    @contextmanager
    def hold() -> Iterator[None]:
        from vitdeploy.remote.device import lock
        from vitdeploy.remote.messages import Job
        from vitdeploy.remote.near.client import client_name

        job = Job(words=("sweep", file.name), files=(), client=client_name(file))
        with lock.hold(job, lambda _: console.relay("waiting for another measurement on this machine")):
            yield

    return hold
