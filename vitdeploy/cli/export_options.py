"""Options of the commands that make an artifact: `export`, `compile` and `run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitdeploy.cli.command import one_of, some_of, valid_for
from vitdeploy.plugins import forms_in, names_in

if TYPE_CHECKING:
    from vitdeploy.recipe import TargetSpec


def _choice(choices: Sequence[str], *flags: str, help: str) -> Any:
    """Return an option that takes one of these words."""
    return typer.Option(*flags, metavar="|".join(choices), callback=one_of(choices), help=help, show_default=False)


_TARGETS = names_in("targets")
_TASKS = names_in("tasks")
_PRECISIONS = [*names_in("precision"), "auto"]
_QUANTIZERS = ["own", "nncf"]
_INPUTS = ["normalized", "pixels", "uint8"]
_PARTS = ["encoder", "decoder"]
_RESIZES = ["letterbox", "shortest", "exact"]
_INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


def _check_batch(text: str) -> None:
    from vitdeploy.recipe import composing

    composing.check_batch(text)


def _check_size(text: str) -> None:
    from vitdeploy.recipe import composing

    composing.check_size(text)


def _check_merging(text: str) -> None:
    from vitdeploy.recipe import composing

    composing.check_merging(text)


def _check_statistics(text: str) -> None:
    from vitdeploy.recipe import composing

    composing.parse_statistics(text)


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help=" · ".join(forms_in("sources")),
    ),
]
TargetName = Annotated[
    str | None,
    _choice(
        _TARGETS,
        help="The engine to compile for. Required unless --recipe names it.",
    ),
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        metavar="CPU|GPU|NPU|AUTO|sm86…",
        help="The device that the engine compiles for. For tensorrt-rtx a GPU architecture such as sm86. Default: CPU; "
        "sm86 for tensorrt-rtx; the GPU of the machine that compiles for tensorrt.",
        show_default=False,
    ),
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(_PRECISIONS),
        callback=some_of(_PRECISIONS),
        help="The numbers that the model computes with. auto: the fastest on the machine that runs it, of those that "
        "lose no more than --max-drop. Several, such as fp16,int8: auto among these and the default. Where this "
        "machine cannot time it, the artifact gets variants, and vitdeploy compile chooses. Default: fp32; fp16 for "
        "tensorrt and tensorrt-rtx.",
        show_default=False,
    ),
]
QuantizerName = Annotated[
    str | None,
    _choice(
        _QUANTIZERS,
        "--quantizer",
        help="What decides scales and rounding for int8, int8-bf16, int8-weights and int4-weights: vitdeploy's own "
        "quantizer, or NNCF (pip install 'vitdeploy[quantize]'). Default: own; auto tries NNCF's INT8 too, where NNCF "
        "is installed.",
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="PP",
        min=0.001,
        help="The most accuracy that may be lost, in percentage points: of top-1 if the calibration images have "
        "labels, else of answers that agree with FP32. Layers that lose most stay in float until this holds. "
        "Default: 0.5 with auto, else no limit.",
        show_default=False,
    ),
]
MergeTokens = Annotated[
    str | None,
    typer.Option(
        "--merge-tokens",
        metavar="off|BLOCK:REMOVED,…",
        callback=valid_for(_check_merging),
        help="Average the most similar tokens behind the attention of these blocks, counted from 0, so that later "
        "blocks have REMOVED tokens fewer: 3:60,6:40. It saves time and changes the answers: judge it with vitdeploy "
        "eval. Default: off.",
        show_default=False,
    ),
]
Portable = Annotated[
    bool,
    typer.Option(
        "--portable",
        help="Keep the precisions that were tried as variants: vitdeploy compile measures them on the machine that it "
        "runs on, and chooses again.",
    ),
]
NoJudgeData = Annotated[
    bool,
    typer.Option(
        "--no-judge-data",
        help="Leave out the images, up to 64 MiB, on which a device judges the accuracy of variants. It then takes the "
        "accuracy that was judged here.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="pretrained|random|FILE",
        help="The weights. FILE is a checkpoint: .safetensors, .pt, .pth, .bin, .ckpt, .pth.tar, or the .index.json of "
        "several. The number of classes and the image size are read from it. Random weights are for tests of speed. "
        "Default: pretrained.",
        show_default=False,
    ),
]
WeightsKey = Annotated[
    str | None,
    typer.Option(
        "--weights-key",
        metavar="KEY",
        help="The part of the checkpoint to take, such as teacher or model.state_dict. Default: the first of "
        "state_dict, model, model_state_dict, module, model_ema, ema, state_dict_ema, teacher, student.",
        show_default=False,
    ),
]
Ema = Annotated[
    bool,
    typer.Option("--ema", help="Take the averaged weights (EMA) of the checkpoint: the same as --weights-key ema."),
]
Classes = Annotated[
    int | None,
    typer.Option(
        "--num-classes",
        metavar="N",
        min=0,
        help="The number of classes of the head; 0 for an embedding without a head. Default: as the checkpoint has.",
        show_default=False,
    ),
]
CalibrationImages = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="About 128 images that show the ranges of activations: a folder, an .npz, or demo:digits. Labels are not "
        "needed. int8 and fp8 need images. int8-dynamic, int8-weights and int4-weights get more exact with them, and "
        "fp16 checks overflow on them.",
        show_default=False,
    ),
]
BatchSizes = Annotated[
    str | None,
    typer.Option(
        metavar="N|MIN:OPT:MAX",
        callback=valid_for(_check_batch),
        help="The batch size that the artifact accepts: one number, or a range and the size to optimise for, such as "
        "1:4:8. Default: 1.",
        show_default=False,
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="HxW|MIN:OPT:MAX",
        callback=valid_for(_check_size),
        help="The size of the input in pixels, such as 224x224; or a range for a file whose sides vary, such as "
        "224x224:384x384:512x512. Then bench, eval and predict prepare images at OPT. Default: the model's own.",
        show_default=False,
    ),
]
ResizeName = Annotated[
    str | None,
    _choice(
        _RESIZES,
        "--resize",
        help="How images get the size of the input: letterbox keeps the aspect ratio and pads, shortest keeps it and "
        "crops the centre, exact squashes. Default: the model's own way.",
    ),
]
LabelsFile = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="FILE|imagenet",
        help="The names of the classes, in the order of the outputs: one per line, a JSON list, or a JSON map of index "
        "to name or of name to index. Folders of images are matched with them. Default: the model's own.",
        show_default=False,
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="FILE|TEXT,TEXT",
        help="The texts that a model with a text tower (CLIP, SigLIP, OWLv2, Grounding DINO) answers with: a file with "
        'one per line, or "a cat,a dog". The text tower runs once, at export, and they become the labels. Default: '
        "only the image tower, as an embedding.",
        show_default=False,
    ),
]
Templates = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help='A text with {} for the prompt, such as "a photo of a {}". Can be repeated: the mean of all is taken.',
        show_default=False,
    ),
]
Binds = Annotated[
    list[str] | None,
    typer.Option(
        "--bind",
        metavar="NAME=VALUE|NAME=FILE.npz",
        help="Fix an input of the model beside the image, such as orig_target_sizes=[[640,640]]. Can be repeated.",
        show_default=False,
    ),
]
ExampleFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--examples",
        metavar="NAME=FILE.npz",
        help="Keep an input of the model beside the image open. The file has examples of it, to compare, calibrate "
        "and time with. Can be repeated.",
        show_default=False,
    ),
]
Outputs = Annotated[
    str | None,
    typer.Option(
        "--outputs",
        metavar="NAME,NAME",
        help="The outputs of the model to export. Default: those that its task reads; all if it has no task, or raw.",
        show_default=False,
    ),
]
AllOutputs = Annotated[bool, typer.Option("--all-outputs", help="Export every output of the model.")]
Part = Annotated[
    str | None,
    _choice(
        _PARTS,
        "--part",
        help="Export one part of a model that has several, such as the image encoder of SAM or TrOCR. Default: a model "
        "that takes an image and a prompt becomes a family, a folder with an artifact for each part.",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="M[,M,M]",
        callback=valid_for(_check_statistics),
        help="The mean of each channel, for pixels from 0 to 1: one for grey, three for red, green, blue. Needs --std. "
        "Default: the model's own.",
        show_default=False,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std",
        metavar="S[,S,S]",
        callback=valid_for(_check_statistics),
        help="The standard deviation of each channel: images become (pixel - mean) / std.",
        show_default=False,
    ),
]
InterpolationName = Annotated[
    str | None,
    _choice(
        _INTERPOLATIONS,
        "--interpolation",
        help="The filter of Pillow that resizes images. Default: the model's own.",
    ),
]
CropShare = Annotated[
    float | None,
    typer.Option(
        "--crop-pct",
        metavar="SHARE",
        min=0.01,
        max=4.0,
        help="The share of the resized image that the model sees, from its centre, such as 0.875. Default: the model's "
        "own.",
        show_default=False,
    ),
]
TaskName = Annotated[
    str | None,
    _choice(
        _TASKS,
        help="What the model is for. Options of a task go into a recipe (docs/tasks.md). Default: the task that the "
        "model names, else classification.",
    ),
]
InputFormName = Annotated[
    str | None,
    _choice(
        _INPUTS,
        "--input",
        help="The input of the artifact, NCHW. normalized: float32 after mean and std. pixels: float32 from 0 to 255. "
        "uint8: the same as bytes. With the last two, mean and std are inside the artifact. Default: normalized.",
    ),
]
TargetOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="An option of the target, as in a recipe, such as workspace_bytes=536870912. Can be repeated.",
        show_default=False,
    ),
]
Dla = Annotated[bool, typer.Option("--dla", hidden=True, help="Refused, with the reason.")]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A recipe (YAML) for everything except MODEL. Options on the command line override it.",
        show_default=False,
    ),
]
OutputFolder = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="DIR",
        help="The folder to write. Default: ./MODEL-TARGET-PRECISION.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output folder if it has an artifact in it.")]


def parse_target_options(target: TargetSpec, texts: list[str] | None) -> dict[str, object]:
    """Parse each `KEY=VALUE` of --option. One that the target does not have, or cannot have, is wrong usage."""
    from vitdeploy import recipe as recipes
    from vitdeploy import targets
    from vitdeploy.errors import RecipeError

    if not texts:
        return {}
    try:
        given = recipes.target_options(texts)
        raw = {**target.model_dump(mode="json"), **given}
        targets.find(recipes.parse(recipes.TargetSpec, raw, where="--option"))
    except RecipeError as error:
        raise typer.BadParameter(str(error), param_hint="--option") from None
    return given
