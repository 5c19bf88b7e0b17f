"""`vitdeploy bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app)
def bench(
    console: Console,
    artifacts: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="One artifact or several of one model.", show_default=False)
    ],
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Time to measure. Default: the recipe's, 10 s.", show_default=False)
    ] = None,
    threads: options.Threads = None,
    against: options.Against = None,
    scenario: options.ScenarioName = "single-stream",
    batch: options.Batches = None,
    streams: options.Streams = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time goes: by part of the model and by operator.")
    ] = False,
    host: options.Host = None,
) -> None:
    """Measure latency against FP32 PyTorch, interleaved, with a confidence interval of the speed-up.

    Several folders are also compared with the first of them.
    """
    from vitdeploy.artifact import load as load_artifact
    from vitdeploy.commands.bench.bench import Plan, parse_batches
    from vitdeploy.commands.bench.bench import bench as run_bench
    from vitdeploy.render import bench_tables

    plan = Plan(
        seconds=seconds,
        threads=threads,
        against=tuple(against or ()),
        scenario=options.scenario(scenario),
        batches=parse_batches(batch),
        streams=streams,
        profile=profile,
    )
    loaded = [load_artifact(path) for path in artifacts]
    if host is not None:
        from vitdeploy.commands.bench.opponents import opponent_names
        from vitdeploy.remote.near import commands

        if folders := [name for name in plan.against if name not in opponent_names()]:
            raise typer.BadParameter(f"{folders[0]} is not sent there: give it as another DIR.", param_hint="--against")
        flags: dict[str, commands.Flag] = {
            "seconds": seconds,
            "threads": threads,
            "against": plan.against,
            "scenario": scenario,
            "batch": batch,
            "streams": streams,
            "profile": profile,
        }
        result = commands.bench_on(commands.find(host), loaded, console, flags=flags)
    else:
        result = run_bench(loaded, console, plan)
    console.show(result, *bench_tables.bench(result))
