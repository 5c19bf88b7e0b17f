"""`vitdeploy eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import MEASURE, app
from vitdeploy.cli.command import command, one_of
from vitdeploy.cli.console import Console
from vitdeploy.escaping import escape

_PROMPTS = ["box", "point"]


@command(
    app,
    "eval",
    section=MEASURE,
    examples=[
        "vitdeploy eval deit --data val/",
        "vitdeploy eval deit --data val/ --host ssh://me@jetson",
        "vitdeploy eval deit --data 'val-{000..049}.tar' --ray auto",
        "vitdeploy eval deit --data val/ --save-reference answers.zip  # with PyTorch",
        "vitdeploy eval deit --data val/ --reference answers.zip  # on the device",
    ],
)
def eval_(
    console: Console,
    artifact: options.ArtifactFolder,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images. For classification: a folder with one sub-folder per class, an .npz, .tar or "
            ".parquet shards, or demo:digits. For other tasks: a folder with images/ and masks/, depth/ or "
            "annotations.json (docs/tasks.md). Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Stop after N samples. Default: all.", show_default=False)
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The reference's answers, saved on another machine with --save-reference. PyTorch is not needed then.",
            show_default=False,
        ),
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Run only the reference, and save its answers in this file, for --reference on a device.",
            show_default=False,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|ADDRESS",
            help="Answer the samples in parts on the nodes of a running Ray cluster. The result is the same.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(_PROMPTS),
            callback=one_of(_PROMPTS),
            help="Of a promptable model: the prompt taken from each object, the box around it or the point that is "
            "farthest inside. Default: box.",
            show_default=False,
        ),
    ] = None,
    at_threshold: options.AtThreshold = None,
    model: options.ModelAgain = None,
    trust_code: options.TrustCode = False,
    evidence: options.EvidenceFolder = None,
    host: options.HostName = None,
) -> None:
    """Measure accuracy, and compare it with FP32 PyTorch on the same images.

    Both models answer the same images, so that the accuracy drop has a narrow confidence interval. With --host the
    reference runs here and the artifact there.
    """
    from vitdeploy.commands.evaluate import evaluate as commands_evaluate
    from vitdeploy.errors import UsageError
    from vitdeploy.render import tables
    from vitdeploy.runtime.waiting import sleep_while_waiting

    sleep_while_waiting()
    if (reference is not None) + (save_reference is not None) + (host is not None) + (ray is not None) > 1:
        hint = "--reference, --save-reference, --host and --ray"
        raise typer.BadParameter("give only one of these.", param_hint=hint)
    if options.is_family(artifact):
        from vitdeploy.commands.family.evaluate import evaluate_family

        others = {"--reference": reference, "--save-reference": save_reference, "--at-threshold": at_threshold}
        options.refuse_for_family({**others, "--model": model, "--evidence": evidence, "--host": host,
                                    "--ray": ray})  # fmt: skip
        kind: Literal["box", "point"] = "point" if prompt == "point" else "box"
        evaluation = evaluate_family(options.load_family(artifact), data, console, limit=limit, prompt=kind)
        console.show(evaluation, tables.evaluation(evaluation))
        return
    if prompt is not None:
        raise UsageError(f"{artifact} is no promptable model, so it has no prompts", fix="Leave out --prompt.")
    loaded = options.give_model(options.load_artifact(artifact, evidence), model, trust_code=trust_code)
    if save_reference is not None:
        saved = commands_evaluate.save_reference(loaded, data, save_reference, console, limit=limit)
        place = escape(str(save_reference))
        console.show(saved, f"saved {saved.samples:,} answers of {saved.name} to {place}")
        return
    if host is not None:
        from vitdeploy.remote.near import commands

        evaluation = commands.evaluate_on(
            commands.find(host), loaded, data, console, limit=limit, at_threshold=at_threshold
        )
    else:
        evaluation = commands_evaluate.evaluate(
            loaded, data, console, limit=limit, reference=reference, at_threshold=at_threshold, ray=ray
        )
    console.show(evaluation, tables.evaluation(evaluation))
