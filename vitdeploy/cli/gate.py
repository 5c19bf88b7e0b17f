"""`vitdeploy gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import app
from vitdeploy.cli.command import EXIT_CODES, command
from vitdeploy.cli.console import Console


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
    from vitdeploy.artifact import load as load_artifact
    from vitdeploy.commands.gate import gate as run_gate
    from vitdeploy.render import tables

    limits = {
        "max_drop_pp": max_drop,
        "min_speedup": min_speedup,
        "max_slowdown_pct": max_slowdown,
        "min_fused_pct": min_fused,
        "max_size_mib": max_size,
        "max_memory_mib": max_memory,
        "max_growth_pct": max_growth,
    }
    verdict = run_gate(
        load_artifact(artifact),
        limits,
        console,
        baseline=baseline,
        save_baseline=save_baseline,
        junit_file=junit,
        markdown_file=markdown,
    )
    console.show(verdict, tables.gate(verdict))
    raise typer.Exit(EXIT_CODES[verdict.verdict])
