"""`vitdeploy compile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import export_options, options
from vitdeploy.cli.app import MAKE, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(
    app,
    "compile",
    section=MAKE,
    examples=["vitdeploy compile deit-tensorrt-fp16", "vitdeploy compile deit-tensorrt-fp16 --host ssh://me@jetson"],
)
def compile_(
    console: Console,
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE",
            help="A bundle that export has written. An artifact is compiled again, for this device.",
            show_default=False,
        ),
    ],
    option: export_options.TargetOptions = None,
    dla: export_options.Dla = False,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            metavar="NAME",
            help="Compile this variant of the bundle, such as int8, and measure no other. Default: the fastest that "
            "loses no more than --max-drop.",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            metavar="PP",
            min=0.001,
            help="The most accuracy that a variant may lose, in percentage points. Default: as exported, or 0.5.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            help="The time to measure, for the comparison of the variants. Default: as exported, or 3, and 10 if that "
            "is in doubt.",
            show_default=False,
        ),
    ] = None,
    host: options.HostName = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="The folder to write. Default: BUNDLE itself.", show_default=False
        ),
    ] = None,
    force: export_options.Force = False,
) -> None:
    """Compile a bundle on the device that it is for.

    Run this on the device, or give --host. PyTorch is not needed there. Of a bundle with variants, each is built,
    compared with FP32 and timed, and the fastest is kept. If it is killed, the same command continues.
    """
    from vitdeploy.artifact import load as load_artifact
    from vitdeploy.cli import views
    from vitdeploy.commands.compile import compile_bundle

    if options.is_family(bundle):
        from vitdeploy.commands.family.compile import compile_family

        options.refuse_for_family({"--host": host, "--variant": variant, "--max-drop": max_drop, "--seconds": seconds})
        family = options.load_family(bundle)
        given = export_options.parse_target_options(family.encoder.manifest.recipe.target, option)
        parsed = given | ({"device": "DLA"} if dla else {})
        exported = compile_family(family, output, console, force=force, options=parsed).summary
        console.show(exported, *views.show_family(exported))
        return
    loaded = load_artifact(bundle)
    given = export_options.parse_target_options(loaded.manifest.recipe.target, option)
    if host is not None:
        from vitdeploy.remote.near import commands

        flags: dict[str, commands.Flag] = {
            "option": option,
            "dla": dla,
            "variant": variant,
            "max_drop": max_drop,
            "seconds": seconds,
        }
        summary = commands.compile_on(commands.find(host), loaded, output, console, force=force, flags=flags)
    else:
        parsed = given | ({"device": "DLA"} if dla else {})
        summary = compile_bundle(
            loaded, output, console, force=force, options=parsed, variant=variant, max_drop_pp=max_drop, seconds=seconds
        ).summary
    console.show(summary, *views.show_export(summary))
