"""The arguments and options of the commands: what `--help` says about each, once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitdeploy.cli.command import one_of
from vitdeploy.plugins import forms_in, names_in

if TYPE_CHECKING:
    from vitdeploy.evidence import Scenario
    from vitdeploy.pipeline.graph_cache import GraphCache


_TARGETS = names_in("targets")
_TASKS = names_in("tasks")
_PRECISIONS = [*names_in("precision"), "auto"]
_INPUTS = ["normalized", "pixels", "uint8"]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help=" · ".join(forms_in("sources")),
    ),
]
Artifact = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact folder.", show_default=False)]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(_TARGETS),
        callback=one_of(_TARGETS),
        help="What to compile for. Needed unless --recipe says it.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="CPU|GPU|NPU|AUTO|sm86…",
        help="What the target compiles for. Default: CPU; sm86 for tensorrt-rtx, its own GPU for tensorrt.",
        show_default=False,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(_PRECISIONS),
        callback=one_of(_PRECISIONS),
        help="auto: the fastest here that loses no more than --max-drop. Default: fp32 for openvino and onnxruntime, "
        "fp16 for the TensorRTs.",
        show_default=False,
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="PP",
        min=0.001,
        help="What may be lost, in points: of top-1 if the calibration images have labels, else of agreement with "
        "FP32. The worst linears stay in float until it holds. Default of auto: 0.5.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="pretrained|random|FILE",
        help="FILE is .safetensors or a .pt state dict. Default: pretrained, never silently random.",
        show_default=False,
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Images: int8 and fp8 need them, int8-dynamic and fp16 are better for them. A folder, an .npz, or "
        "demo:digits.",
        show_default=False,
    ),
]
Batch = Annotated[
    str | None,
    typer.Option(metavar="N|MIN:OPT:MAX", help="Batch size, fixed or a range. Default: 1.", show_default=False),
]
ImageSize = Annotated[
    str | None, typer.Option(metavar="HxW", help="Input size. Default: the model's own.", show_default=False)
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(_TASKS),
        callback=one_of(_TASKS),
        help="What the model is for; its options go into a recipe. Default: what the model says, else classification.",
        show_default=False,
    ),
]
InputForm = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="|".join(_INPUTS),
        callback=one_of(_INPUTS),
        help="What the artifact takes, NCHW: normalized float32, or pixels from 0 to 255 (float32 or uint8), with "
        "mean and std inside the graph. Default: normalized.",
        show_default=False,
    ),
]
TargetOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="An option of the target, as in a recipe, such as workspace_bytes=536870912. May be given again.",
        show_default=False,
    ),
]
Dla = Annotated[bool, typer.Option("--dla", hidden=True, help="Refused, with the reason.")]
Recipe = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Take everything but the model from this recipe; flags win.", show_default=False),
]
Out = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="DIR", help="The folder to write.", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output folder if it is an artifact.")]
NoCache = Annotated[
    bool,
    typer.Option("--no-cache", help="Export the model anew. Otherwise a graph that was exported before is used again."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all that this process may use.")]
Host = Annotated[
    str | None,
    typer.Option(
        metavar="ssh://USER@HOST[:PORT]|NAME",
        help="Do it on this machine, over SSH: the light base of vitdeploy there is enough. NAME is one of your hosts "
        "(vitdeploy hosts).",
        show_default=False,
    ),
]
_SCENARIOS: tuple[Scenario, ...] = ("single-stream", "multi-stream", "offline")
Against = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|DIR",
        help="pytorch-fp32, torch-compile, onnxruntime-fp32, openvino-fp32 (engines on the plain export), or another "
        "artifact. Repeat it for more; the first is the reference. Default: the recipe's.",
        show_default=False,
    ),
]
ScenarioName = Annotated[
    str,
    typer.Option(
        metavar="|".join(_SCENARIOS),
        callback=one_of(_SCENARIOS),
        help="LoadGen's: one image at a time, queries of eight, or as many as it can do.",
    ),
]
Batches = Annotated[
    str | None,
    typer.Option("--batch", metavar="N[,N…]", help="Batch sizes to try. Default: its own.", show_default=False),
]
Streams = Annotated[
    int | None, typer.Option(min=1, help="Inferences at a time, where the target lets one choose.", show_default=False)
]


def scenario(name: str) -> Scenario:
    """The scenario of a name that `one_of` has let through."""
    return next(known for known in _SCENARIOS if known == name)


def open_cache(*, no_cache: bool) -> GraphCache | None:
    """Return the user's cache of exported graphs; None with --no-cache."""
    if no_cache:
        return None
    from vitdeploy.pipeline.graph_cache import GraphCache

    return GraphCache()
