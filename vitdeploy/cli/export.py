"""`vitdeploy export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitdeploy.cli import export_options, model_options, options
from vitdeploy.cli.app import MAKE, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console

if TYPE_CHECKING:
    from vitdeploy.commands.family.export import ExportedFamily
    from vitdeploy.pipeline.graph_cache import GraphCache
    from vitdeploy.recipe import Recipe


@command(
    app,
    section=MAKE,
    groups={
        "Target": ["target", "device", "option", "host"],
        "Precision": ["precision", "quantizer", "max_drop", "seconds", "calibration", "portable", "no_judge_data"],
        "Tokens": ["merge_tokens", "drop_tokens"],
        "Model": [
            "batch",
            "image_size",
            "task",
            "labels",
            "prompts",
            "template",
            "bind",
            "examples",
            "outputs",
            "all_outputs",
            "part",
            "input_form",
        ],
        "Preprocessing": ["mean", "std", "interpolation", "resize", "crop_pct"],
        "Weights": ["weights", "weights_key", "ema", "num_classes"],
        "Files": ["recipe", "save_recipe", "output", "force", "no_cache"],
        "Debugging": ["verify", "dump_graphs"],
    },
    examples=[
        "vitdeploy export timm:deit_tiny_patch16_224 --target openvino -o deit",
        "vitdeploy export hf:facebook/deit-tiny-patch16-224 --target onnxruntime \\\n"
        "    --precision int8 --calibration images/",
        "vitdeploy export hf:openai/clip-vit-base-patch32 --target openvino \\\n"
        '    --prompts "cat,dog" --template "a photo of a {}"',
        "vitdeploy export model.onnx --target tensorrt --host ssh://me@jetson",
        "vitdeploy export model.onnx --target openvino \\\n    --image-size 224x224:384x384:512x512",
        "vitdeploy export rtdetr.onnx --target openvino \\\n    --bind orig_target_sizes=[[640,640]]",
        "vitdeploy export pointed.onnx --target openvino --examples point=points.npz",
        "vitdeploy export hf:microsoft/trocr-base-printed --target openvino \\\n    --part encoder",
    ],
)
def export(
    console: Console,
    model: model_options.ModelName,
    target: export_options.TargetName = None,
    device: export_options.DeviceName = None,
    option: export_options.TargetOptions = None,
    dla: export_options.Dla = False,
    host: options.HostName = None,
    precision: export_options.PrecisionName = None,
    quantizer: export_options.QuantizerName = None,
    max_drop: export_options.MaxDrop = None,
    seconds: export_options.Seconds = None,
    calibration: export_options.CalibrationImages = None,
    merge_tokens: export_options.MergeTokens = None,
    drop_tokens: export_options.DropTokens = None,
    portable: export_options.Portable = False,
    no_judge_data: export_options.NoJudgeData = False,
    weights: model_options.Weights = None,
    weights_key: model_options.WeightsKey = None,
    ema: model_options.Ema = False,
    num_classes: model_options.Classes = None,
    batch: model_options.BatchSizes = None,
    image_size: model_options.ImageSize = None,
    task: model_options.TaskName = None,
    labels: model_options.LabelsFile = None,
    prompts: model_options.Prompts = None,
    template: model_options.Templates = None,
    bind: model_options.Binds = None,
    examples: model_options.ExampleFiles = None,
    outputs: model_options.Outputs = None,
    all_outputs: model_options.AllOutputs = False,
    part: model_options.Part = None,
    input_form: model_options.InputFormName = None,
    mean: model_options.Mean = None,
    std: model_options.Std = None,
    interpolation: model_options.InterpolationName = None,
    resize: model_options.ResizeName = None,
    crop_pct: model_options.CropShare = None,
    recipe: export_options.RecipeFile = None,
    save_recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write these options as a recipe, for --recipe and vitdeploy run. An existing file is replaced.",
            show_default=False,
        ),
    ] = None,
    output: export_options.OutputFolder = None,
    force: export_options.Force = False,
    no_cache: options.NoCache = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check the numbers after every pass, and name the first pass that changes them."),
    ] = False,
    dump_graphs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the ONNX graph after each phase into this folder.", show_default=False),
    ] = None,
) -> None:
    """Export MODEL, and compile it for a target.

    The result is a folder, an artifact: the compiled model, and an audit of what the compiler really fused and in
    which precision each layer runs. If the model must be compiled on another device (as for tensorrt), the folder is a
    bundle: copy it to the device and run `vitdeploy compile` there, or use --host.
    """
    if target is None and recipe is None:
        raise typer.BadParameter("give it, or a --recipe that names it.", param_hint="--target")
    if ema and weights_key not in (None, "ema"):
        raise typer.BadParameter("give either --ema or --weights-key.", param_hint="--ema")
    if all_outputs and outputs is not None:
        raise typer.BadParameter("give either --outputs or --all-outputs.", param_hint="--all-outputs")
    if all(text not in (None, "off") for text in (merge_tokens, drop_tokens)):
        raise typer.BadParameter("give either --merge-tokens or --drop-tokens.", param_hint="--drop-tokens")
    if (mean is None) != (std is None):
        raise typer.BadParameter("give --mean and --std together.", param_hint="--mean" if std is None else "--std")
    from vitdeploy import recipe as recipes
    from vitdeploy.cli import views
    from vitdeploy.commands.export import export as run_export
    from vitdeploy.commands.export import read_recipe, save
    from vitdeploy.commands.export_order import default_folder
    from vitdeploy.sources import list_parts

    composed = recipes.compose(
        model,
        base=read_recipe(recipe) if recipe is not None else None,
        target=target,
        device="DLA" if dla else device,
        precision=precision,
        quantizer=quantizer,
        max_drop=max_drop,
        seconds=seconds,
        merge_tokens=merge_tokens,
        drop_tokens=drop_tokens,
        weights=weights,
        weights_key="ema" if ema else weights_key,
        num_classes=num_classes,
        calibration=calibration,
        batch=batch,
        image_size=image_size,
        labels=labels,
        prompts=prompts,
        templates=template or None,
        bind=recipes.parse_binds(bind) if bind else None,
        examples=recipes.parse_examples(examples) if examples else None,
        outputs="all" if all_outputs else outputs,
        part=part,
        mean=None if mean is None else recipes.parse_statistics(mean),
        std=None if std is None else recipes.parse_statistics(std),
        interpolation=interpolation,
        resize=resize,
        crop_pct=crop_pct,
        task=task,
        input_form=input_form,
        portable=portable or None,
        judge=False if no_judge_data else None,
    )
    composed = recipes.with_target_options(composed, export_options.parse_target_options(composed.target, option))
    out, cache = output or default_folder(composed), options.open_cache(no_cache=no_cache)
    if composed.model.part is None and (parts := list_parts(composed.model)):
        family = _export_family(composed, parts, out, console, force=force, verify=verify, cache=cache, host=host)
        if save_recipe is not None:
            save(composed, save_recipe)
        console.show(family, *views.show_family(family))
        return
    if host is not None:
        from vitdeploy.remote.near import commands

        summary = commands.export_for(
            commands.find(host), composed, out, console, force=force, verify=verify, cache=cache, dumps=dump_graphs
        )
    else:
        summary = run_export(composed, out, console, force=force, verify=verify, cache=cache, dumps=dump_graphs).summary
    if save_recipe is not None:
        save(composed, save_recipe)
    console.show(summary, *views.show_export(summary))


def _export_family(
    recipe: Recipe,
    parts: tuple[str, ...],
    out: Path,
    console: Console,
    *,
    force: bool,
    verify: bool,
    cache: GraphCache | None,
    host: str | None,
) -> ExportedFamily:
    """Export all parts of a model on this machine.

    Raises:
        UsageError: another machine should do it.
    """
    from vitdeploy.commands.family.export import export_family
    from vitdeploy.errors import UsageError

    if host is not None:
        flags = " and ".join(f"--part {part}" for part in parts)
        raise UsageError(
            f"{recipe.model.spec} becomes a family of {' and '.join(parts)}, which --host does not take",
            fix=f"Export each part with --host: {flags}.",
        )
    return export_family(recipe, out, console, force=force, verify=verify, cache=cache).summary
