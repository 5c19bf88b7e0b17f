"""`vitdeploy inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import MEASURE, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(
    app,
    section=MEASURE,
    examples=["vitdeploy inspect deit", "vitdeploy inspect deit --sensitivity --calibration images/"],
)
def inspect(
    console: Console,
    artifact: options.ArtifactFolder,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity",
            help="Also quantize each linear layer alone, and show how much it changes the output, worst first.",
        ),
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images for --sensitivity: a folder, an .npz, shards, or demo:digits. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    model: options.ModelAgain = None,
    trust_code: options.TrustCode = False,
    evidence: options.EvidenceFolder = None,
    no_cache: options.NoCache = False,
) -> None:
    """Show what the compiler did: fused attention, precisions, sizes.

    This audit is read from the compiled model. Attention that was not fused is listed with the reason. The structure of
    the model (blocks, heads, layers) is shown above it.
    """
    for name, value in {"--calibration": calibration, "--model": model, "--trust-code": trust_code}.items():
        if value and not sensitivity:
            raise typer.BadParameter("it is only used with --sensitivity.", param_hint=name)
    from vitdeploy.cli import views
    from vitdeploy.commands.inspect.inspect import inspect as run_inspect
    from vitdeploy.frozen import replace

    if options.is_family(artifact):
        from vitdeploy.commands.family.inspect import inspect_family

        options.refuse_for_family({"--sensitivity": sensitivity, "--evidence": evidence})
        inspected = inspect_family(options.load_family(artifact))
        console.show(inspected, *views.show_inspected_family(inspected))
        return
    loaded = options.load_artifact(artifact, evidence)
    audit = run_inspect(loaded)
    if sensitivity:
        from vitdeploy.commands.inspect.sensitivity import measure_sensitivity

        cache = options.open_cache(no_cache=no_cache)
        loaded = options.give_model(loaded, model, trust_code=trust_code)
        audit = replace(audit, sensitivity=measure_sensitivity(loaded, calibration, console, cache=cache))
    console.show(audit, *views.show_audit(audit))
