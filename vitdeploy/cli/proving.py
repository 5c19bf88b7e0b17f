"""Commands that give evidence, and judge it: inspect, bench, eval, debug, gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import app
from vitdeploy.cli.common import EXIT_CODES, command
from vitdeploy.cli.console import Console


@command(app)
def inspect(
    console: Console,
    artifact: options.Artifact,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Quantize each linear alone and show what it costs, worst first.")
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images for --sensitivity. Default: the recipe's.", show_default=False),
    ] = None,
) -> None:
    """Show the model's structure and the audit: attention fused k of n with reasons, precision of linears, sizes."""
    if calibration is not None and not sensitivity:
        raise typer.BadParameter("only --sensitivity looks at images.", param_hint="--calibration")
    from vitdeploy.cli import views
    from vitdeploy.pipeline.prove import inspect as run_inspect

    result = run_inspect(artifact)
    if sensitivity:
        from vitdeploy.pipeline.sensing import sensitivity as run_sensitivity

        result = result.model_copy(update={"sensitivity": run_sensitivity(artifact, calibration, console)})
    console.show(result, *views.inspected(result))


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
    from vitdeploy.pipeline.benching import Plan, plan_batches
    from vitdeploy.pipeline.benching import bench as run_bench
    from vitdeploy.recipe import OPPONENTS
    from vitdeploy.report import speed

    plan = Plan(
        seconds=seconds,
        threads=threads,
        against=tuple(against or ()),
        scenario=options.scenario(scenario),
        batches=plan_batches(batch),
        streams=streams,
        profile=profile,
    )
    if host is not None:
        from vitdeploy.remote import commands

        if folders := [name for name in plan.against if name not in OPPONENTS]:
            raise typer.BadParameter(f"{folders[0]} stays here: name it as an artifact.", param_hint="--against")
        flags: dict[str, commands.Flag] = {
            "seconds": seconds,
            "threads": threads,
            "against": plan.against,
            "scenario": scenario,
            "batch": batch,
            "streams": streams,
            "profile": profile,
        }
        result = commands.bench_on(commands.find(host), artifacts, console, flags=flags)
    else:
        result = run_bench(artifacts, console, plan)
    console.show(result, *speed.bench(result))


@command(app, "eval")
def eval_(
    console: Console,
    artifact: options.Artifact,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images in the form of the task (docs/tasks.md): one sub-folder per class, images/ with "
            "masks/, depth/ or annotations.json, an .npz, or demo:digits. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many samples.", show_default=False)] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What the reference answered elsewhere, from --save-reference: for devices without PyTorch.",
            show_default=False,
        ),
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Only let the reference answer, and keep that.", show_default=False),
    ] = None,
    host: options.Host = None,
) -> None:
    """Measure accuracy against FP32 PyTorch on the same samples, paired.

    With --host the reference answers here, the artifact there.
    """
    from vitdeploy.pipeline import evaluating
    from vitdeploy.report import tables

    if (reference is not None) + (save_reference is not None) + (host is not None) > 1:
        raise typer.BadParameter("give only one of them.", param_hint="--reference, --save-reference and --host")
    if save_reference is not None:
        saved = evaluating.save_reference(artifact, data, save_reference, console, limit=limit)
        console.show(saved, f"{saved.samples:,} answers of {saved.name} in {save_reference}")
        return
    if host is not None:
        from vitdeploy.remote import commands

        result = commands.evaluate_on(commands.find(host), artifact, data, console, limit=limit)
    else:
        result = evaluating.evaluate(artifact, data, console, limit=limit, reference=reference)
    console.show(result, tables.evaluation(result))


@command(app)
def debug(
    console: Console,
    artifact: options.Artifact,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images; labels are not needed. Default: the recipe's.", show_default=False),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many to look at.")] = 8,
) -> None:
    """Find where FP32 and the artifact part: tensor by tensor at block ends, then inside the first that is off."""
    from vitdeploy.pipeline.debugging import debug as run_debug
    from vitdeploy.report import tables

    result = run_debug(artifact, data, console, images=images)
    console.show(result, tables.divergence(result))


@command(app)
def gate(
    console: Console,
    artifact: options.Artifact,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Compare speed with this artifact (interleaved) or saved baseline.",
            show_default=False,
        ),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the evidence as a baseline to commit.", show_default=False),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(metavar="PP", help="Largest accuracy drop, in points.", show_default=False)
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(metavar="X", help="Least speed-up over FP32 PyTorch.", show_default=False)
    ] = None,
    max_slowdown: Annotated[
        float | None,
        typer.Option(metavar="PCT", help="Largest slow-down against --baseline. Default: 2.", show_default=False),
    ] = None,
    min_fused: Annotated[
        float | None,
        typer.Option(metavar="PCT", help="Least share of fused attention sites, in percent.", show_default=False),
    ] = None,
    max_size: Annotated[
        float | None, typer.Option(metavar="MIB", help="Largest size of the deployed files.", show_default=False)
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(
            metavar="MIB", help="Largest peak memory of a process that opens and runs it.", show_default=False
        ),
    ] = None,
    max_growth: Annotated[
        float | None,
        typer.Option(
            metavar="PCT", help="Largest growth of files and memory against --baseline. Default: 5.", show_default=False
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.", show_default=False)] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a table for a pull request.", show_default=False)
    ] = None,
) -> None:
    """Judge the stored evidence: pass (exit 0), fail (1), or invalid (3) when it cannot be decided.

    Limits come from the recipe; flags win. Run eval and bench first. Inside GitHub Actions it annotates the job.
    """
    from vitdeploy.pipeline.gating import gate as run_gate
    from vitdeploy.report import tables

    limits = {
        "max_drop_pp": max_drop,
        "min_speedup": min_speedup,
        "max_slowdown_pct": max_slowdown,
        "min_fused_pct": min_fused,
        "max_size_mib": max_size,
        "max_memory_mib": max_memory,
        "max_growth_pct": max_growth,
    }
    result = run_gate(
        artifact,
        limits,
        console,
        baseline=baseline,
        save_baseline=save_baseline,
        junit_file=junit,
        markdown_file=markdown,
    )
    console.show(result, tables.gate(result))
    raise typer.Exit(EXIT_CODES[result.verdict])
