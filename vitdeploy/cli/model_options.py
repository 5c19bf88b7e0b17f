"""Options of the commands that make an artifact, about the model and its images."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli.command import choice, valid_for
from vitdeploy.plugins import forms_in, names_in

_TASKS = names_in("tasks")
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
    choice(
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
    choice(
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
    choice(
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
    choice(
        _TASKS,
        help="What the model is for. Options of a task go into a recipe (docs/tasks.md). Default: the task that the "
        "model names, else classification.",
    ),
]
InputFormName = Annotated[
    str | None,
    choice(
        _INPUTS,
        "--input",
        help="The input of the artifact, NCHW. normalized: float32 after mean and std. pixels: float32 from 0 to 255. "
        "uint8: the same as bytes. With the last two, mean and std are inside the artifact. Default: normalized.",
    ),
]
