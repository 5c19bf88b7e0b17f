"""List where a recording of a board and what the tests assume of such a board differ.

    python -m tests.fakes.check RECORDING        a folder or .tar.gz of `vitdeploy doctor --record`

Every model of the recording is built again with the fake TensorRT of the nearest version. Compared are the members of
the bindings, what was refused, fusion and types, the fields of layer plans and of the inspector's JSON, and the phases
of a build. It is also checked that vitdeploy reads all that the board has printed. A difference means: correct the fake
or the parser, or note the version in docs/compatibility.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.fakes import replay
from tests.fakes import tensorrt as fakes
from tests.fakes.fields import Fields, fields_of_json, fields_of_plan
from tests.fakes.fixtures import CARD, ORIN
from tests.fakes.recordings import opened
from vitdeploy import targets
from vitdeploy.commands.board.messages import MessageLog
from vitdeploy.commands.board.models import unpack
from vitdeploy.commands.board.recording import BUILD_LOG, INSPECTED, RecordedBuild, Recording, load, parse_messages
from vitdeploy.errors import VitdeployError
from vitdeploy.measure.power.sensors import find_total
from vitdeploy.measure.power.tegrastats import parse_line
from vitdeploy.precision import kind_of
from vitdeploy.targets._tensorrt.inspector import parse_inspector
from vitdeploy.targets._tensorrt.options import EngineOptions
from vitdeploy.targets._tensorrt.plan import parse_plan
from vitdeploy.targets._tensorrt.recorder import EngineRecorder

_BUILT = ("run", "built")
_SHOWN = 8


@dataclass(frozen=True)
class Difference:
    """What the fake and the recording say about the same thing."""

    where: str
    fake: str
    recording: str

    def __str__(self) -> str:
        return f"{self.where}\n    fake:      {self.fake}\n    recording: {self.recording}"


@dataclass(frozen=True)
class Build:
    """A model that was built: by the fake now, or on the board."""

    status: str
    why: str = ""
    fused: int = 0
    linears: Mapping[str, int] = field(default_factory=dict)
    messages: Sequence[tuple[str, str]] = ()
    inspected: str = ""

    @property
    def plan(self) -> list[str]:
        """The lines of the layer plan."""
        plans = [text.split("\n") for _, text in self.messages if "LayerType: " in text]
        return [line for line in (plans[-1] if plans else []) if line.startswith("Name: ")]


def compare(path: Path) -> list[Difference]:
    """All differences, those of a kind together."""
    with opened(path) as folder:
        return list(dict.fromkeys(_compare(folder, load(folder))))


def _compare(folder: Path, recording: Recording) -> Iterator[Difference]:
    yield from _system(recording)
    for target, compiler in recording.compilers.items():
        if "backend" not in compiler:
            yield Difference(f"{target}: loading", "loads", str(compiler.get("why")))
            continue
        product, _, version = compiler["backend"].partition(" ")
        release = replay.nearest_release(product, version)
        where = f"{product} {version} beside the fake {release}"
        yield from _surface(where, fakes.SURFACE[release], compiler["surface"])
        yield from _gpu(where, compiler["gpu"])
        for attempt in recording.attempts:
            if attempt.target == target and attempt.status != "skipped":
                there, here = read_build(folder, attempt), build_with_fake(release, attempt)
                yield from _builds(f"{where}: {attempt.model} {attempt.precision}", here, there)
                yield from _forms(where, here, there)
                yield from _reading(f"{where}: {attempt.model} {attempt.precision}", there, attempt)


def build_with_fake(release: str, attempt: RecordedBuild) -> Build:
    """The same model with the fake, on the GPU generation that the attempt names, if it does."""
    trt: Any = fakes.module(release, SimpleNamespace())
    numbers = kind_of(attempt.precision).numbers
    recorder = EngineRecorder(trt, "tensorrt", EngineOptions(), numbers, ahead_of_time=True)
    with tempfile.TemporaryDirectory() as work, MessageLog(Path(work) / BUILD_LOG) as log:
        model = unpack(attempt.model, attempt.precision, Path(work))
        inspected = ""
        try:
            compiled = recorder.compile(model.bundle, Path(work), log.add)
        except VitdeployError as error:
            return Build("refused", error.message, messages=_read_messages(Path(work)))
        if attempt.precision != "bf16":  # ONNX Runtime, which the fake opens, has no convolution in it
            inspected = recorder.inspect(compiled)
        assert isinstance(compiled, targets.Compiled)
        assert compiled.audit is not None
        audit = compiled.audit
        return Build(
            "built", "", audit.attention.fused, audit.linears.model_dump(), _read_messages(Path(work)), inspected
        )


def read_build(folder: Path, attempt: RecordedBuild) -> Build:
    """The recorded build."""
    files = folder / attempt.folder
    inspected = (files / INSPECTED).read_text() if (files / INSPECTED).exists() else ""
    status = "built" if attempt.status in _BUILT else attempt.status
    fused = int(attempt.attention.get("fused", 0))
    return Build(status, attempt.why, fused, attempt.linears, _read_messages(files), inspected)


def _read_messages(folder: Path) -> list[tuple[str, str]]:
    path = folder / BUILD_LOG
    return list(parse_messages(path.read_text().split("\n"))) if path.exists() else []


def _surface(where: str, fake: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted(fake.keys() | recorded.keys()):
        here, there = fake.get(name, []), recorded.get(name, [])
        if set(here) != set(there):
            only_here, only_there = sorted(set(here) - set(there)), sorted(set(there) - set(here))
            yield Difference(f"{where}: members of {name}", _list("only", only_here), _list("only", only_there))
        if isinstance(here, dict) and isinstance(there, dict):
            moved = {key: (here[key], there[key]) for key in here.keys() & there.keys() if here[key] != there[key]}
            if moved:
                yield Difference(
                    f"{where}: numbers of {name}",
                    str({key: numbers[0] for key, numbers in sorted(moved.items())}),
                    str({key: numbers[1] for key, numbers in sorted(moved.items())}),
                )


def _gpu(where: str, recorded: Mapping[str, Any]) -> Iterator[Difference]:
    assumed = ORIN if recorded.get("integrated") else CARD
    for key, value in assumed.items():
        there = recorded.get(key)
        there = int(str(there).removeprefix("sm")) if key == "sm" and there else there
        if "why" not in recorded and there != value:
            yield Difference(f"{where}: GPU, {key}", str(value), str(there))


def _builds(where: str, here: Build, there: Build) -> Iterator[Difference]:
    if here.status != there.status:
        yield Difference(where, _describe_end(here), _describe_end(there))
    elif here.status in _BUILT:
        if here.fused != there.fused:
            yield Difference(f"{where}: fused attentions", str(here.fused), str(there.fused))
        types = {kind: (here.linears.get(kind, 0), there.linears.get(kind, 0)) for kind in there.linears}
        if any(first != second for first, second in types.values()):
            yield Difference(f"{where}: linears", _count(here.linears), _count(there.linears))


def _describe_end(build: Build) -> str:
    return f"{build.status}{f' ({build.why})' if build.why else ''}"


def _count(linears: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in linears.items() if number) or "none"


def _forms(where: str, here: Build, there: Build) -> Iterator[Difference]:
    """Fields of layer plans and of the inspector, phases of the build. The same for all models, so told once."""
    if here.plan and there.plan:
        yield from _fields(f"{where}: layer plan", fields_of_plan(here.plan), fields_of_plan(there.plan))
    if here.inspected and there.inspected:
        yield from _fields(f"{where}: inspector", fields_of_json(here.inspected), fields_of_json(there.inspected))
    phases = [list(dict.fromkeys(text for kind, text in build.messages if kind == "PHASE")) for build in (here, there)]
    if phases[0] != phases[1] and there.status in _BUILT:
        yield Difference(f"{where}: phases", ", ".join(phases[0]), ", ".join(phases[1]))


def _fields(where: str, here: Fields, there: Fields) -> Iterator[Difference]:
    for name in ("layer", "tensor", "weights"):
        first, second = getattr(here, name), getattr(there, name)
        if first != second and second:
            yield Difference(
                f"{where}, fields of a {name}",
                _list("only", sorted(first - second)),
                _list("only", sorted(second - first)),
            )


def _reading(where: str, there: Build, attempt: RecordedBuild) -> Iterator[Difference]:
    """What vitdeploy does not read of what the board printed."""
    unread = [line[:120] for line in there.plan if not parse_plan([line])]
    if unread:
        yield Difference(f"{where}: lines of the plan", "all are read", _list("not read", unread))
    if there.status in _BUILT and not there.plan:
        yield Difference(f"{where}: layer plan in the log", "printed", "not printed")
    inspected = parse_inspector(there.inspected)
    if there.inspected and not inspected:
        yield Difference(f"{where}: inspector", "is read", f"not read: {there.inspected[:120]}")
    logged = parse_plan(there.plan)
    if inspected and logged and inspected != logged:
        pairs = [(a, b) for a, b in zip(logged, inspected, strict=False) if a != b]
        first = f"{pairs[0][0]} / {pairs[0][1]}" if pairs else f"{len(logged)} and {len(inspected)} layers"
        yield Difference(f"{where}: log and inspector", "say the same", first[:400])
    if other := attempt.linears.get("other", 0):
        yield Difference(f"{where}: linears", "all have a type", f"{other} have none that vitdeploy reads")
    if attempt.has_wrong_numbers:
        yield Difference(f"{where}: numbers", "those of FP32", attempt.why)
    for note in attempt.notes:
        yield Difference(f"{where}: note", "none", note)
    if (graph := attempt.effective.get("cuda_graph", "yes")) != "yes":
        yield Difference(f"{where}: CUDA graph", "yes", graph)
    for step, problem in attempt.problems.items():
        yield Difference(f"{where}: {step}", "works", problem)


def _system(recording: Recording) -> Iterator[Difference]:
    """What vitdeploy does not read of the board's sensors and programs."""
    lines = [line for line in recording.before.tegrastats.split("\n") if "mW" in line or "RAM" in line]
    unread = [line[:200] for line in lines if not parse_line(line).watts]
    if unread:
        yield Difference("tegrastats: power rails", "are read", _list("not read in", unread[:1]))
    if "NV Power Mode" in recording.commands.get("nvpmodel", "") and recording.host.power_mode is None:
        yield Difference("nvpmodel -q", "is read", repr(recording.commands["nvpmodel"][:200]))
    if "/etc/nv_tegra_release" in recording.files and not (recording.host.jetpack or "").replace(".", "").isdigit():
        yield Difference(
            "/etc/nv_tegra_release", "R36 (release), REVISION: 4.7", recording.files["/etc/nv_tegra_release"]
        )
    for attempt in recording.attempts:
        if attempt.power is None:
            continue
        rails = [rail.name for rail in attempt.power.rails]
        if attempt.power.why and recording.files.get("/etc/nv_tegra_release"):
            yield Difference("power", "is measured", attempt.power.why)
        elif rails and attempt.power.source != "rapl" and find_total(rails) is None:
            yield Difference(
                "power: the rail that feeds all others", "VDD_IN, VIN or 5V_IN", f"none of {', '.join(rails)}"
            )


def _list(word: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{word} {', '.join(names[:_SHOWN])}{more}" if names else "-"


def main(arguments: list[str]) -> int:
    """Print the differences."""
    if len(arguments) != 1:
        print("usage: python -m tests.fakes.check RECORDING")
        return 2
    differences = compare(Path(arguments[0]))
    for difference in differences:
        print(difference)
    print(json.dumps({"differences": len(differences)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
