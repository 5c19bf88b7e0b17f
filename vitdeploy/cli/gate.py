"""`vitdeploy gate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import MEASURE, app
from vitdeploy.cli.command import EXIT_CODES, command, one_of
from vitdeploy.cli.console import Console
from vitdeploy.errors import UsageError


def _check_positive(value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value:g} is not above 0.")
    return value


def _limit(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=text, show_default=False, callback=_check_positive)


@command(
    app,
    section=MEASURE,
    groups={
        "Limits": ["max_drop", "min_speedup", "against", "min_fused", "min_quantized", "max_size", "max_memory"],
        "Limits in milliseconds": ["max_latency", "max_end_to_end", "latency_percentile"],
        "Limits in millijoules": ["max_energy", "energy_rail"],
        "Limits at a fixed threshold": ["at_threshold", "max_count_change"],
        "Signatures": ["require_signed", "before_signing"],
        "Comparison with an earlier artifact": ["baseline", "max_slowdown", "max_growth", "save_baseline"],
        "Comparison with an earlier model": ["data", "max_regression", "max_class_regression", "groups"],
        "Files": ["evidence", "junit", "markdown", "log", "log_artifact"],
    },
    examples=[
        "vitdeploy gate deit --max-drop 0.5 --min-speedup 1.2 --min-fused 100",
        "vitdeploy gate deit --max-latency 20 --latency-percentile 99",
        "vitdeploy gate deit --min-fused 100 --baseline deit-before/",
        "vitdeploy gate new --baseline deit --data val/ --max-class-regression 5",
        "vitdeploy gate deit --max-drop 0.5 --require-signed release.pub",
        "vitdeploy gate deit --max-drop 0.5 --log jsonl:results.jsonl",
    ],
)
def gate(
    console: Console,
    artifact: options.ArtifactFolder,
    max_drop: Annotated[float | None, _limit("PP", "The largest accuracy drop, in percentage points.")] = None,
    min_speedup: Annotated[
        float | None,
        _limit("X", "The smallest speed-up over the reference that bench timed, by default FP32 PyTorch."),
    ] = None,
    min_fused: Annotated[
        float | None, _limit("PCT", "The smallest share of attention sites that run as one kernel, in percent.")
    ] = None,
    min_quantized: Annotated[
        float | None,
        _limit("PCT", "The smallest share of multiply-accumulates in the precision that was asked for, in percent."),
    ] = None,
    max_size: Annotated[float | None, _limit("MIB", "The largest size of the deployed files, in MiB.")] = None,
    max_memory: Annotated[
        float | None, _limit("MIB", "The largest peak memory of a process that opens and runs the artifact, in MiB.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="For --min-speedup: the artifact that bench --against DIR timed this one against. Default: the "
            "recipe's opponent.",
            show_default=False,
        ),
    ] = None,
    max_latency: Annotated[
        float | None, _limit("MS", "The largest latency, in milliseconds, judged by its interval. Needs no PyTorch.")
    ] = None,
    max_end_to_end: Annotated[
        float | None,
        _limit("MS", "The largest time from an encoded image to the answer, which bench --end-to-end measures."),
    ] = None,
    latency_percentile: Annotated[
        str | None,
        typer.Option(
            metavar="50|90|99",
            callback=one_of(["50", "90", "99"]),
            help="The percentile of the latencies that is judged. Default: 50, the median.",
            show_default=False,
        ),
    ] = None,
    max_energy: Annotated[
        float | None,
        _limit("MILLIJOULES", "The largest energy of one inference, in millijoules, judged by its interval."),
    ] = None,
    energy_rail: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The power rail that --max-energy is about. Default: the one that feeds all others.",
            show_default=False,
        ),
    ] = None,
    at_threshold: options.AtThreshold = None,
    max_count_change: Annotated[
        float | None,
        _limit("PCT", "The largest change of the number of findings at --at-threshold, in percent. Default: 5."),
    ] = None,
    require_signed: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY",
            help="A public key: the artifact and the evidence that is judged have to be signed by it, and unchanged.",
            show_default=False,
        ),
    ] = None,
    before_signing: Annotated[
        bool,
        typer.Option(
            "--before-signing",
            help="Leave out gate.require_signed of the recipe, and store the verdict: vitdeploy sign then signs it.",
        ),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="The earlier artifact: its folder, which is timed in turns with this one; or a file of "
            "--save-baseline, whose figures are compared.",
            show_default=False,
        ),
    ] = None,
    max_slowdown: Annotated[
        float | None, _limit("PCT", "The largest slow-down against --baseline, in percent. Default: 2.")
    ] = None,
    max_growth: Annotated[
        float | None, _limit("PCT", "The largest growth of files and memory, in percent. Default: 5.")
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the figures of this artifact to a small file, for --baseline later.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images, which this artifact and the one in --baseline answer. The two may have different "
            "weights: this judges a retrained model against the one before.",
            show_default=False,
        ),
    ] = None,
    max_regression: Annotated[
        float | None, _limit("PP", "The largest loss of accuracy against --baseline on --data, in points. Default: 1.")
    ] = None,
    max_class_regression: Annotated[
        float | None, _limit("PP", "The largest loss in the worst class, or in the worst group of --groups, in points.")
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Groups to judge instead of classes: JSON or YAML that maps a name to patterns of images, such as "
            "night/*, or to class names. Default limit: 5.",
            show_default=False,
        ),
    ] = None,
    evidence: options.EvidenceFolder = None,
    junit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the checks as JUnit XML, for CI systems.", show_default=False),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the checks as a Markdown table, for a pull request.", show_default=False
        ),
    ] = None,
    log: options.LogTo = None,
    log_artifact: options.LogArtifact = False,
) -> None:
    """Check the measured evidence against limits: pass, fail or invalid.

    Exit code 0: every limit holds. 1: a limit is broken. 3: the evidence cannot decide, because a measurement is
    missing, doubtful, or on too few images.

    Run `vitdeploy eval` and `vitdeploy bench` first. Limits in the recipe apply too; options override them. In GitHub
    Actions, failed checks appear as annotations.
    """
    from vitdeploy.commands.gate.gate import gate as run_gate
    from vitdeploy.render import tables

    if before_signing and require_signed is not None:
        raise UsageError(
            "--before-signing leaves out the check that --require-signed asks for", fix="Leave out one of the two."
        )
    limits: dict[str, float | str | None] = {
        "max_drop_pp": max_drop,
        "min_speedup": min_speedup,
        "max_slowdown_pct": max_slowdown,
        "min_fused_pct": min_fused,
        "min_quantized_pct": min_quantized,
        "max_size_mib": max_size,
        "max_memory_mib": max_memory,
        "max_growth_pct": max_growth,
        "max_latency_ms": max_latency,
        "max_end_to_end_ms": max_end_to_end,
        "latency_percentile": None if latency_percentile is None else int(latency_percentile),
        "max_energy_mj": max_energy,
        "energy_rail": energy_rail,
        "at_threshold": at_threshold,
        "max_count_change_pct": max_count_change,
        "max_regression_pp": max_regression,
        "max_class_regression_pp": max_class_regression,
        "require_signed": None if require_signed is None else str(require_signed),
    }
    if options.is_family(artifact):
        from vitdeploy.commands.family.gate import gate_family

        options.refuse_for_family(
            {"--baseline": baseline, "--data": data, "--groups": groups, "--against": against,
             "--save-baseline": save_baseline, "--evidence": evidence, "--log": log}
        )  # fmt: skip
        family = options.load_family(artifact)
        verdict = gate_family(family, limits, junit_file=junit, markdown_file=markdown, before_signing=before_signing)
        console.show(verdict, tables.gate(verdict))
        raise typer.Exit(EXIT_CODES[verdict.verdict])
    logs = options.open_logs(log, console, whole=log_artifact)
    verdict = run_gate(
        options.load_artifact(artifact, evidence),
        limits,
        console,
        baseline=baseline,
        data=data,
        groups=groups,
        against=against,
        save_baseline=save_baseline,
        junit_file=junit,
        markdown_file=markdown,
        before_signing=before_signing,
        logs=logs,
    )
    console.show(verdict, tables.gate(verdict))
    raise typer.Exit(EXIT_CODES[verdict.verdict])
