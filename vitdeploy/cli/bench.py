"""`vitdeploy bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import MEASURE, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(
    app,
    section=MEASURE,
    examples=[
        "vitdeploy bench deit",
        "vitdeploy bench deit --against onnxruntime-fp32 --profile",
        "vitdeploy bench deit-fp32 deit-int8 --batch 1,4,8 --threads 2",
        "vitdeploy bench deit --tune-streams",
    ],
)
def bench(
    console: Console,
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR",
            help="An artifact. Further artifacts of the same model are also compared with the first.",
            show_default=False,
        ),
    ],
    against: options.Against = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            help="The time to measure, for each batch size; with --tune-streams for each scenario. Default: the "
            "recipe's, else 10.",
            show_default=False,
        ),
    ] = None,
    threads: options.Threads = None,
    batch: options.BenchBatches = None,
    scenario: options.ScenarioName = None,
    streams: options.Streams = None,
    tune_streams: options.TuneStreams = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also show the time for each part of the model and each operator.")
    ] = False,
    end_to_end: Annotated[
        bool,
        typer.Option(
            "--end-to-end",
            help="Also time what a caller waits for, of the first artifact: from an encoded image to labels or boxes, "
            "with the share of each stage.",
        ),
    ] = False,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR",
            help="The encoded images for --end-to-end. Default: a made-up JPEG of 1280x720.",
            show_default=False,
        ),
    ] = None,
    sustained: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            min=3,
            max=240,
            help="Also run the first artifact alone until temperature and latency are steady, at most so long. "
            "The gate then judges the steady latency and energy.",
            show_default=False,
        ),
    ] = None,
    any_model: options.AnyModel = False,
    model: options.ModelAgain = None,
    trust_code: options.TrustCode = False,
    evidence: options.EvidenceFolder = None,
    host: options.HostName = None,
) -> None:
    """Measure latency and speed-up over FP32 PyTorch.

    The artifact and its reference are timed in turns, so that changes of the machine's speed affect both. The speed-up
    has a 95 % confidence interval. Memory, start-up and size are measured too.
    """
    if tune_streams:
        others: dict[str, object] = {
            "a second DIR": artifacts[1:], "--against": against, "--batch": batch, "--streams": streams,
            "--profile": profile, "--end-to-end": end_to_end, "--images": images, "--sustained": sustained,
            "--any-model": any_model, "--model": model, "--trust-code": trust_code, "--host": host,
        }  # fmt: skip
        _tune_streams(console, artifacts[0], scenario, seconds, threads, evidence, others)
        return
    from vitdeploy.commands.bench.bench import Plan, parse_batches
    from vitdeploy.commands.bench.bench import bench as run_bench
    from vitdeploy.render import bench_tables

    plan = Plan(
        seconds=seconds,
        threads=threads,
        against=tuple(against or ()),
        scenario=options.find_scenario(scenario) or "single-stream",
        batches=parse_batches(batch),
        streams=streams,
        profile=profile,
        any_model=any_model,
        end_to_end=end_to_end or images is not None,
        images=images,
        sustained=sustained,
    )
    if options.is_family(artifacts[0]):
        from vitdeploy.commands.family.bench import bench_family

        unusable = {"a second DIR": artifacts[1:], "--host": host, "--evidence": evidence, "--model": model}
        options.refuse_for_family({**unusable, "--trust-code": trust_code})
        benched = bench_family(options.load_family(artifacts[0]), console, plan)
        console.show(benched, *bench_tables.family(benched.parts, benched.pair))
        return
    loaded = [options.load_artifact(path, None if number else evidence) for number, path in enumerate(artifacts)]
    if host is not None:
        if model is not None or trust_code:
            raise typer.BadParameter("it is not sent to the host.", param_hint="--model" if model else "--trust-code")
        from vitdeploy.commands.bench.opponents import opponent_names
        from vitdeploy.remote.near import commands

        if images is not None:
            raise typer.BadParameter("they are not sent to the host: give --end-to-end.", param_hint="--images")
        folders = [name for name in plan.against if name not in opponent_names()]
        opposing = [options.load_artifact(Path(name), None) for name in folders]
        flags: dict[str, commands.Flag] = {
            "seconds": seconds,
            "threads": threads,
            "against": [commands.opponent_folder(folders.index(n)) if n in folders else n for n in plan.against],
            "scenario": plan.scenario,
            "batch": batch,
            "streams": streams,
            "profile": profile,
            "end_to_end": end_to_end,
            "sustained": sustained,
            "any_model": any_model,
        }
        result = commands.bench_on(commands.find(host), loaded, console, flags=flags, opposing=opposing)
    else:
        loaded[0] = options.give_model(loaded[0], model, trust_code=trust_code)
        result = run_bench(loaded, console, plan)
    console.show(result, *bench_tables.bench(result, loaded[0].manifest.recipe.gate.max_latency_ms))


def _tune_streams(
    console: Console,
    path: Path,
    scenario: str | None,
    seconds: float | None,
    threads: int | None,
    evidence: Path | None,
    others: Mapping[str, object],
) -> None:
    """Search for the streams and the batch of one artifact.

    Raises:
        BadParameter: one of the `others` is given, or the scenario has one image at a time.
    """
    for name, value in others.items():
        if value:
            where = "run it there" if name == "--host" else "leave it out"
            raise typer.BadParameter(f"it is not for --tune-streams: {where}.", param_hint=name)
    if scenario == "single-stream":
        raise typer.BadParameter(
            "single-stream has one image at a time, so --tune-streams has nothing to search for: give multi-stream or "
            "offline, or leave it out.",
            param_hint="--scenario",
        )
    from vitdeploy.commands.bench.tune_streams import tune_streams
    from vitdeploy.render import stream_table

    if options.is_family(path):
        options.refuse_for_family({"--tune-streams": True})
    loaded = options.load_artifact(path, evidence)
    result = tune_streams(loaded, console, scenario=options.find_scenario(scenario), seconds=seconds, threads=threads)
    console.show(result, *stream_table.tuning(result))
