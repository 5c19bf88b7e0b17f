"""Arguments and options that several commands share, with their help texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitdeploy.cli.command import one_of

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact
    from vitdeploy.artifact.family import Family
    from vitdeploy.cli.console import Console
    from vitdeploy.commands.log.logs import Logs
    from vitdeploy.evidence import Scenario
    from vitdeploy.pipeline.graph_cache import GraphCache


def _check_threshold(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"{value:g} is not between 0 and 1.")
    return value


def _check_logs(values: list[str] | None) -> list[str] | None:
    from vitdeploy.commands.log.destination import parse_destination
    from vitdeploy.errors import UsageError

    for value in values or ():
        try:
            parse_destination(value)
        except UsageError as error:
            raise typer.BadParameter(str(error)) from None
    return values


ArtifactFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder that export has written.", show_default=False)
]
ModelAgain = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The model that was exported, given again. An artifact may come from anyone, so the code of a python: "
        "model runs only if you name it here. Its weights and its code must be those that were exported.",
        show_default=False,
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-code", help="Run the code that the artifact names. Only for artifacts that you trust."),
]
EvidenceFolder = Annotated[
    Path | None,
    typer.Option(
        "--evidence",
        metavar="DIR",
        help="The folder for evidence, such as of a read-only artifact: it is written there and read there first. "
        "Default: the artifact's own folder.",
        show_default=False,
    ),
]
LogTo = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="jsonl:FILE|mlflow:URI",
        callback=_check_logs,
        help="Also write parameters, metrics with their intervals, doubts and verdict to a file of JSON Lines, or to "
        "MLflow: a folder or http://HOST:PORT, with #EXPERIMENT or not. Can be repeated.",
        show_default=False,
    ),
]
LogArtifact = Annotated[
    bool, typer.Option("--log-artifact", help="Copy the artifact to MLflow too, and not only its evidence.")
]
NoCache = Annotated[
    bool,
    typer.Option("--no-cache", help="Export the model from PyTorch again, and do not reuse an earlier export of it."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="The number of CPU threads, for all sides. Default: the recipe's, else all available ones.",
        show_default=False,
    ),
]
HostName = Annotated[
    str | None,
    typer.Option(
        metavar="ssh://USER@HOST[:PORT]|NAME",
        help="Do this on another machine over SSH. That machine needs vitdeploy, but not PyTorch. NAME is a host from "
        "hosts.yaml (see vitdeploy hosts).",
        show_default=False,
    ),
]
_SCENARIOS: tuple[Scenario, ...] = ("single-stream", "multi-stream", "offline")
Against = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|DIR",
        help="What to compare with: pytorch-fp32, torch-compile, onnxruntime-fp32, openvino-fp32 (the engine with a "
        "plain export), or the folder of another artifact. Can be repeated; speed-ups are over the first. Default: the "
        "recipe's, else pytorch-fp32.",
        show_default=False,
    ),
]
ScenarioName = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(_SCENARIOS),
        callback=one_of(_SCENARIOS),
        help="MLPerf LoadGen's scenarios. single-stream: one image at a time. multi-stream: queries of 8 images. "
        "offline: 32 images at once, for throughput. The last two use what --tune-streams stored. Default: "
        "single-stream; with --tune-streams the other two.",
        show_default=False,
    ),
]
BenchBatches = Annotated[
    str | None,
    typer.Option(
        "--batch",
        metavar="N[,N…]",
        help="Batch sizes to measure one after the other, such as 1,4,8. Default: the artifact's own.",
        show_default=False,
    ),
]
AtThreshold = Annotated[
    float | None,
    typer.Option(
        "--at-threshold",
        metavar="SCORE",
        callback=_check_threshold,
        help="Also compare what both sides find with at least this score, between 0 and 1: F1, and the number of "
        "detections, or of answers that are so probable.",
        show_default=False,
    ),
]
AnyModel = Annotated[
    bool, typer.Option("--any-model", help="Time artifacts of different models, or of different weights, too.")
]
Streams = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="The number of inferences at the same time, for targets with streams (openvino).",
        show_default=False,
    ),
]
TuneStreams = Annotated[
    bool,
    typer.Option(
        "--tune-streams",
        help="Search for the streams and the batch with the most images a second, compare them with the engine's own "
        "setting for throughput, and store them for --scenario and the Python API. Nothing else is measured.",
    ),
]


def find_scenario(name: str | None) -> Scenario | None:
    """Return the scenario with a name that `one_of` has accepted; None for None."""
    return next((scenario for scenario in _SCENARIOS if scenario == name), None)


def load_artifact(path: Path, evidence: Path | None) -> Artifact:
    """Load an artifact: see `commands.given`."""
    from vitdeploy.commands import given

    return given.load_artifact(path, evidence)


def is_family(path: Path) -> bool:
    """Return True if a folder holds a family, the artifacts of a model in several parts."""
    from vitdeploy.artifact import family

    return family.is_family(path)


def load_family(path: Path) -> Family:
    """Load a family: see `artifact.family`."""
    from vitdeploy.artifact import family

    return family.load_family(path)


def refuse_for_family(given: Mapping[str, object]) -> None:
    """Refuse options that are for one artifact.

    Args:
        given: the value of each option.

    Raises:
        UsageError: one is given.
    """
    from vitdeploy.errors import UsageError

    for name, value in given.items():
        if value:
            raise UsageError(
                f"{name} is for one artifact, not for a family",
                fix="Leave it out, or give DIR/encoder and DIR/decoder.",
            )


def give_model(artifact: Artifact, model: str | None, *, trust_code: bool) -> Artifact:
    """Give an artifact its model again: see `commands.given`."""
    from vitdeploy.commands import given

    return given.give_model(artifact, model, trust_code=trust_code)


def open_logs(given: list[str] | None, console: Console, *, whole: bool) -> Logs:
    """Open the destinations of --log, before any work: see `commands.log.logs`.

    Raises:
        UsageError: --log-artifact without MLflow.
    """
    from vitdeploy.commands.log import logs
    from vitdeploy.errors import UsageError

    if whole and not any(value.startswith("mlflow:") for value in given or ()):
        raise UsageError("--log-artifact copies the artifact to MLflow", fix="Give --log mlflow:URI too.")
    return logs.open_logs(given or (), console, whole=whole)


def open_cache(*, no_cache: bool) -> GraphCache | None:
    """Return the user's cache of exported graphs; None with --no-cache."""
    if no_cache:
        return None
    from vitdeploy.pipeline.graph_cache import GraphCache

    return GraphCache()
