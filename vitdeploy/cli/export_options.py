"""Options of the commands that make an artifact, `export`, `compile` and `run`: target, precision, files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitdeploy.cli.command import choice, some_of, valid_for
from vitdeploy.plugins import names_in

if TYPE_CHECKING:
    from vitdeploy.recipe import TargetSpec


_TARGETS = names_in("targets")
_PRECISIONS = [*names_in("precision"), "auto"]
_QUANTIZERS = ["own", "nncf"]


def _check_merging(text: str) -> None:
    from vitdeploy.recipe import composing

    composing.check_merging(text)


def _check_dropping(text: str) -> None:
    from vitdeploy.recipe import composing

    composing.check_dropping(text)


TargetName = Annotated[
    str | None,
    choice(
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
    choice(
        _QUANTIZERS,
        "--quantizer",
        help="What decides scales and rounding for int8, int8-bf16, int8-weights and int4-weights: vitdeploy's own "
        "quantizer, or NNCF (pip install 'vitdeploy\\[quantize]'). Default: own; auto tries NNCF's INT8 too, where "
        "NNCF is installed.",
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
        "Default: 0.5 with auto, of precision or merging, else no limit.",
        show_default=False,
    ),
]
Seconds = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0.1,
        help="The time to measure, for each comparison of speed: of the candidates of auto, of merging, of a precision "
        "with the default. Give more where a note says that something is in doubt. Default: the recipe's, else 3, and "
        "10 if that is in doubt; 1.5 for a precision that is named.",
        show_default=False,
    ),
]
MergeTokens = Annotated[
    str | None,
    typer.Option(
        "--merge-tokens",
        metavar="off|auto|BLOCK:REMOVED,…",
        callback=valid_for(_check_merging),
        help="Average the most similar tokens behind the attention of these blocks, counted from 0, so that later "
        "blocks have REMOVED tokens fewer: 3:60,6:40. It saves time and changes the answers: judge it with vitdeploy "
        "eval. auto: the fastest on this machine, of those that lose no more than --max-drop in all. Default: off.",
        show_default=False,
    ),
]
DropTokens = Annotated[
    str | None,
    typer.Option(
        "--drop-tokens",
        metavar="off|BLOCK:REMOVED,…",
        callback=valid_for(_check_dropping),
        help="For fixed cameras, instead of --merge-tokens: leave out REMOVED tokens behind the attention of these "
        "blocks, at the same positions of every image. They are those that are most like others on the calibration "
        "images. It saves time and changes the answers. Default: off.",
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
CalibrationImages = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="About 128 images that show the ranges of activations: a folder, an .npz, shards, or demo:digits. Labels "
        "are not needed. int8 and fp8 need images. int8-dynamic, int8-weights and int4-weights get more exact with "
        "them, and fp16 checks overflow on them.",
        show_default=False,
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
