"""The command line: parse, one call, exit code.

Nothing heavy is imported on the way to `--help`: each command imports what it calls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import device, options
from vitdeploy.cli.common import command, run
from vitdeploy.cli.console import Console
from vitdeploy.cli.hosts import hosts

app = typer.Typer(
    name="vitdeploy",
    help="Get Vision Transformers onto edge devices: export, fuse, quantize, compile, and prove the result.",
    epilog="Exit codes: 0 done or gate passed · 1 failed · 2 wrong usage · 3 the gate could not decide · "
    "130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(device.app, name="device", hidden=True)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"vitdeploy {version('vitdeploy')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Get Vision Transformers onto edge devices: export, fuse, quantize, compile, and prove the result."""


@command(app)
def export(
    console: Console,
    model: options.Model,
    target: options.Target = None,
    device: options.Device = None,
    precision: options.Precision = None,
    max_drop: options.MaxDrop = None,
    weights: options.Weights = None,
    calibration: options.Calibration = None,
    batch: options.Batch = None,
    image_size: options.ImageSize = None,
    task: options.Task = None,
    input_form: options.InputForm = None,
    recipe: options.Recipe = None,
    host: options.Host = None,
    output: options.Out = None,
    force: options.Force = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the numbers after every pass; name the first that breaks.")
    ] = False,
) -> None:
    """Turn MODEL into a compiled artifact (or, for a device elsewhere, a bundle) with its audit.

    The folder appears whole or not at all. Default: ./MODEL-TARGET-PRECISION. With --host it is exported here and
    compiled there.
    """
    if target is None and recipe is None:
        raise typer.BadParameter("give it, or a --recipe that says it.", param_hint="--target")
    from vitdeploy import recipe as recipes
    from vitdeploy.cli import views
    from vitdeploy.pipeline.export import default_folder
    from vitdeploy.pipeline.export import export as run_export

    settled = recipes.compose(
        model,
        base=recipes.read(recipe) if recipe is not None else None,
        target=target,
        device=device,
        precision=precision,
        max_drop=max_drop,
        weights=weights,
        calibration=calibration,
        batch=batch,
        image_size=image_size,
        task=task,
        input_form=input_form,
    )
    out = output or default_folder(settled)
    if host is not None:
        from vitdeploy.remote import commands

        result = commands.export_for(commands.find(host), settled, out, console, force=force, verify=verify)
    else:
        result = run_export(settled, out, console, force=force, verify=verify)
    console.show(result, *views.exported(result))


@command(app, "compile")
def compile_(
    console: Console,
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A folder that export left at stage bundle.", show_default=False)
    ],
    host: options.Host = None,
    output: options.Out = None,
    force: options.Force = False,
) -> None:
    """Finish on this device (or --host) what export could only prepare elsewhere. Default: in the bundle's folder."""
    from vitdeploy.cli import views
    from vitdeploy.pipeline.compiling import compile_bundle

    if host is not None:
        from vitdeploy.remote import commands

        result = commands.compile_on(commands.find(host), bundle, output, console, force=force)
    else:
        result = compile_bundle(bundle, output, console, force=force)
    console.show(result, *views.exported(result))


@command(app)
def inspect(console: Console, artifact: options.Artifact) -> None:
    """Show the model's structure and the audit: attention fused k of n with reasons, precision of linears, sizes."""
    from vitdeploy.cli import views
    from vitdeploy.pipeline.prove import inspect as run_inspect

    result = run_inspect(artifact)
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
    host: options.Host = None,
) -> None:
    """Measure latency against FP32 PyTorch, interleaved, with a confidence interval of the speed-up."""
    from vitdeploy.pipeline.prove import bench as run_bench
    from vitdeploy.report import tables

    if host is not None:
        from vitdeploy.remote import commands

        result = commands.bench_on(commands.find(host), artifacts, console, seconds=seconds, threads=threads)
    else:
        result = run_bench(artifacts, console, seconds=seconds, threads=threads)
    console.show(result, tables.bench(result))


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
        typer.Option(metavar="PCT", help="Largest slow-down against --baseline, in percent.", show_default=False),
    ] = None,
    min_fused: Annotated[
        float | None,
        typer.Option(metavar="PCT", help="Least share of fused attention sites, in percent.", show_default=False),
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.", show_default=False)] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a table for a pull request.", show_default=False)
    ] = None,
) -> None:
    """Judge the stored evidence: pass (exit 0), fail (1), or invalid (3) when it cannot be decided.

    Limits come from the recipe; flags win. Run eval and bench first.
    """
    from vitdeploy.pipeline.gating import gate as run_gate
    from vitdeploy.report import tables

    limits = {
        "max_drop_pp": max_drop,
        "min_speedup": min_speedup,
        "max_slowdown_pct": max_slowdown,
        "min_fused_pct": min_fused,
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
    raise typer.Exit(_EXIT_CODES[result.verdict])


@command(app)
def predict(
    console: Console,
    artifact: options.Artifact,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files.", show_default=False)],
) -> None:
    """Run it on images, with the model's own preprocessing and labels: classes, regions, boxes, depth or vectors."""
    from vitdeploy.cli import views
    from vitdeploy.pipeline.predict import Deployed

    with Deployed(artifact) as deployed:
        predictions = deployed.predict(images)
        if deployed.artifact.random_weights:
            console.warn("random weights: these answers mean nothing")
    console.show({"predictions": predictions}, *views.predictions(predictions))


@command(app, "run")
def run_(
    console: Console,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.", show_default=False)
    ],
    weights: options.Weights = None,
    calibration: options.Calibration = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Labelled images to evaluate on.", show_default=False)
    ] = None,
    output: options.Out = None,
    force: options.Force = False,
) -> None:
    """Do all of it: export, inspect, eval, bench, gate, report. Exits like gate."""
    from vitdeploy.cli import views
    from vitdeploy.pipeline.run import run as run_all

    result = run_all(recipe, output, console, weights=weights, calibration=calibration, data=data, force=force)
    console.show(result, *views.outcome(result))
    raise typer.Exit(_EXIT_CODES[result.gate.verdict])


@command(app)
def report(
    console: Console,
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR…",
            help="The artifact to report on, and others to set beside it in speed against accuracy.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The page. Default: report.html in the first DIR.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images to compare attention on. Default: what it was evaluated or calibrated on.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=0, max=8, help="Images whose attention is shown; 0 for none.")] = 3,
) -> None:
    """Write one self-contained HTML page with the verdict and all evidence, and what is missing of it."""
    from vitdeploy.cli import views
    from vitdeploy.pipeline.reporting import report as run_report

    result = run_report(artifacts, output, console, images=images, data=data)
    console.show(result, *views.reported(result))


@command(app)
def doctor(console: Console) -> None:
    """Say what can run here, what cannot, why, and the fix."""
    from vitdeploy.cli import views
    from vitdeploy.pipeline.doctor import doctor as run_doctor

    result = run_doctor()
    console.show(result, *views.doctor(result))


command(app)(hosts)


@command(app)
def recipes(
    console: Console,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this one.", show_default=False)] = None,
) -> None:
    """List the shipped recipes, or print one."""
    from vitdeploy.cli import views
    from vitdeploy.pipeline.run import shipped_recipe, shipped_recipes

    if name is None:
        listed = shipped_recipes()
        console.show({"recipes": listed}, *views.recipes(listed))
    else:
        path, text = shipped_recipe(name)
        console.show({"name": name, "path": str(path), "recipe": text}, text.rstrip())


_EXIT_CODES = {"pass": 0, "fail": 1, "invalid": 3}


def main() -> None:
    """The console script."""
    run(app)
