"""The content of a recording: `recording.json`, and the log and the inspected layers of each build beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vitdeploy.artifact.layout import RECORDING
from vitdeploy.environment import Host
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Power
from vitdeploy.frozen import describe_unread

FILE = RECORDING
BUILD_LOG, INSPECTED = "build.log", "inspector.json"
LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.999, "int8": 0.99, "fp8": 0.98}
"""Of an output to FP32's, by precision. The ViT's graph itself has 0.99997 in INT8 and 0.9994 in FP8. Reports of wrong
numbers in TensorRT name far less, such as 0.018 (NVIDIA/TensorRT#4742)."""
Status = Literal["run", "built", "refused", "failed", "skipped"]

_MESSAGE = re.compile(r"\[(\w+)\] ?(.*)")
_CONTINUED = "  | "


class Times(BaseModel):
    """The times of a run in milliseconds: its median, its 90th percentile, and the number of runs."""

    model_config = ConfigDict(frozen=True)
    p50_ms: float
    p90_ms: float
    runs: int


class LayerTime(BaseModel):
    """The time of a kernel in a profiled run, in milliseconds."""

    model_config = ConfigDict(frozen=True)
    name: str
    kind: str
    ms: float


class RecordedBuild(BaseModel):
    """A model that was built in a process of its own, and what became of it.

    Attributes:
        target: the compiler.
        model: the model.
        precision: its precision.
        device: the device that it was compiled for.
        status: "run" and "built" (it cannot run here) are successes; "refused" has an error of the compiler, "failed"
            is a crash or a limit, "skipped" had no time left.
        stage: the last step that was begun.
        why: why it was not run, or how its numbers are wrong, in one line.
        problems: by step, of those that failed alone: the others went on.
        seconds: by step.
        engine_bytes: the size of the engine.
        notes: remarks about the build.
        attention: sites, fused sites, and the reasons of the others.
        linears: the number of linears by the type in which they multiply.
        layers: the layers that vitdeploy read in the log and in what the inspector printed.
        parity: the largest difference to FP32 relative to the largest output, and the cosine.
        device_times: on the GPU's own clock.
        end_to_end_times: of a caller.
        effective: how the engine ran, such as with a CUDA graph.
        profile: the time of each kernel.
        trtexec: times by TensorRT's own program, or why there are none.
        power: energy by power rail.
    """

    model_config = ConfigDict(frozen=True)
    target: str
    model: str
    precision: str
    device: str = ""
    status: Status
    stage: str = ""
    why: str = ""
    problems: Mapping[str, str] = {}
    seconds: Mapping[str, float] = {}
    engine_bytes: int | None = None
    notes: tuple[str, ...] = ()
    attention: Mapping[str, Any] = {}
    linears: Mapping[str, int] = {}
    layers: Mapping[str, int] = {}
    parity: Mapping[str, Any] = {}
    device_times: Times | None = None
    end_to_end_times: Times | None = None
    effective: Mapping[str, str] = {}
    profile: tuple[LayerTime, ...] = ()
    trtexec: Mapping[str, Any] = {}
    power: Power | None = None

    @property
    def has_wrong_numbers(self) -> bool:
        """Return whether it ran, and its output is not that of FP32."""
        cosine = self.parity.get("cosine")  # null in JSON if it was not finite
        return self.status == "run" and not (cosine is not None and cosine >= LEAST_COSINE[self.precision])

    @property
    def folder(self) -> str:
        """The folder of its files in the recording."""
        return f"{self.target}/{self.model}-{self.precision}"


class State(BaseModel):
    """Sensors and clocks at one moment: group -> FOLDER/FILE -> content; and lines of tegrastats."""

    model_config = ConfigDict(frozen=True)
    numbers: Mapping[str, Mapping[str, str]] = {}
    tegrastats: str = ""


class Recording(BaseModel):
    """A recording of a board.

    Attributes:
        recording: the version of this form.
        vitdeploy: the version that recorded it.
        complete: False if it was interrupted, or if time was up.
        why: why it is not complete.
        seconds: how long it took.
        host: the facts that timings depend on.
        libraries: the installed versions.
        files: files of the system, as they are.
        commands: what programs of the system printed.
        compilers: what each compiler says about itself and its device, or why it does not.
        before: sensors and clocks before the builds.
        after: the same after them.
        attempts: the models that were built.
    """

    model_config = ConfigDict(frozen=True)
    recording: Literal[1] = 1
    vitdeploy: str
    complete: bool = True
    why: str = ""
    seconds: float = 0.0
    host: Host
    libraries: Mapping[str, str] = {}
    files: Mapping[str, str] = {}
    commands: Mapping[str, str] = {}
    compilers: Mapping[str, Mapping[str, Any]] = {}
    before: State = State()
    after: State = State()
    attempts: tuple[RecordedBuild, ...] = ()


class BuildOutcome(BaseModel):
    """The end of an attempt, in short."""

    model_config = ConfigDict(frozen=True)
    target: str
    model: str
    precision: str
    status: Status
    why: str = ""


class Recorded(BaseModel):
    """The summary of a written recording.

    Attributes:
        folder: where it is.
        archive: the file to send.
        files: all other files in the folder, which the archive contains.
        complete: False if time was up.
        why: why it is not complete.
        attempts: the models that were built, with what became of each.
        notes: what the user should know.
    """

    model_config = ConfigDict(frozen=True)
    folder: str
    archive: str
    files: tuple[str, ...]
    complete: bool
    why: str = ""
    attempts: tuple[BuildOutcome, ...]
    notes: tuple[str, ...] = ()


def format_message(severity: str, text: str) -> str:
    """Return a message of a compiler as lines of a log, which `parse_messages` reads."""
    first, *rest = text.split("\n")
    return "".join([f"[{severity}] {first}\n", *(f"{_CONTINUED}{line}\n" for line in rest)])


def parse_messages(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the severity and the text of each message in a log. Other lines are skipped."""
    severity, parts = "", list[str]()
    for line in lines:
        if line.startswith(_CONTINUED) and severity:
            parts.append(line.removeprefix(_CONTINUED))
        elif match := _MESSAGE.fullmatch(line):
            if severity:
                yield severity, "\n".join(parts)
            severity, parts = match[1], [match[2]]
    if severity:
        yield severity, "\n".join(parts)


def load(folder: Path) -> Recording:
    """Load the recording in a folder.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    try:
        return Recording.model_validate(json.loads((folder / FILE).read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise ArtifactError(
            f"{folder} has no readable recording: {describe_unread(error)}",
            fix="Give the folder or the .tar.gz that vitdeploy doctor --record has written.",
        ) from None
