"""A fake TensorRT that does what a recording says, in place of what is assumed here.

For the models of the recording (those of `vitdeploy doctor --record`) the messages, the layer plan, the inspector's
text and the refusals are the recorded ones. For all other graphs the fake of the nearest version answers, with the
recorded version and members, and in the recorded form of layer plans. Numbers are computed by ONNX Runtime as ever.
"""

from __future__ import annotations

import enum
import json
import re
import tarfile
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx

from tests.fakes import tensorrt as fakes
from tests.fakes.guarded import MAGIC, Number, heard, say
from vitdeploy.artifact.layout import GRAPH
from vitdeploy.commands.board.models import ASSET
from vitdeploy.commands.board.recording import BUILD_LOG, INSPECTED, RecordedBuild, Recording, load, parse_messages
from vitdeploy.targets._tensorrt.api import release as parse_release
from vitdeploy.targets._tensorrt.plan import PlanLayer, parse_plan

Message = tuple[str, str]
_PARSE_ERROR = re.compile(r"cannot parse the node '(?P<node>[^']*)' \((?P<kind>\w+)\) of [^:]+: (?P<reason>.*)")
_NEW_BUILD = "Input filename:"
_WEAK = "built weakly typed"
_BUILT = ("run", "built")


def module(folder: Path, cuda: Any = None, target: str = "") -> Any:
    """`tensorrt`, or `tensorrt_rtx` if the recording is of that; `target` chooses, if it has both."""
    recording = load(folder)
    target = target or next(iter(recording.compilers))
    compiler = recording.compilers[target]
    product, _, version = compiler["backend"].partition(" ")
    release = nearest_release(product, version)
    is_rtx = product == "tensorrt-rtx"
    trt = fakes.module(release, SimpleNamespace() if is_rtx and cuda is None else cuda, compiler["surface"])
    trt.__name__, trt.__version__ = product.replace("-", "_"), version
    if is_rtx:
        names = {name.upper(): number for number, name in enumerate(compiler["compute_capabilities"])}
        trt.ComputeCapability = enum.Enum("ComputeCapability", names, type=Number)
        trt.IBuilderConfig.set_compute_capability = lambda config, capability, index: None
    trt.recording = Replay(folder, recording, target)
    trt.plan_form = trt.recording.plan_form or release
    return trt


def nearest_release(product: str, version: str) -> str:
    """The fake that assumes most about this version."""
    if product == "tensorrt-rtx" or parse_release(version) >= (11,):
        return "11.4"
    return "10.16" if parse_release(version) >= (10, 12) else "10.3"


class Replay:
    """The recorded builds of one compiler, by graph."""

    def __init__(self, folder: Path, recording: Recording, target: str) -> None:
        self._folder = folder
        self._attempts = {(a.model, a.precision): a for a in recording.attempts if a.target == target}

    @property
    def plan_form(self) -> str:
        """The version whose form the recorded layer plans have; empty if there are none."""
        plans = (text for key in self._attempts for severity, text in self._messages(key) if "LayerType: " in text)
        plan = next(plans, "")
        return "" if not plan else "10.3" if "Format/Datatype: " in plan else "11.4"

    def knows(self, model: Any) -> bool:
        """Whether this graph was built there."""
        attempt = self._find(model)
        return attempt is not None and attempt.status != "skipped"

    def parse_error(self, model: Any) -> tuple[Any, str] | None:
        """The node that was not parsed there, and the reason."""
        attempt = self._find(model)
        match = _PARSE_ERROR.search(attempt.why) if attempt is not None else None
        if match is None:
            return None
        return onnx.helper.make_node(match["kind"], [], [], name=match["node"]), match["reason"]

    def build(self, trt: Any, logger: Any, network: Any, config: Any) -> Any:
        """Say what was said, and return an engine, or None if there was none."""
        attempt = self._find(network._model)
        assert attempt is not None
        messages = self._choose_build(attempt, strong=network._strong)
        if messages is None or not _say_all(trt, logger, config, messages) or attempt.status not in _BUILT:
            return None
        inspected = self._read(attempt, INSPECTED)
        facts: dict[str, Any] = {
            "version": trt.__version__, "flags": config._flags, "profile": {},
            "layers": [_describe(layer) for layer in read_plan(messages)],
        }  # fmt: skip
        if inspected:
            facts["inspected"] = inspected
        model = fakes._compute(trt, network, config.builder_optimization_level)
        return trt.IHostMemory(MAGIC + json.dumps(facts).encode() + b"\n" + model.SerializeToString())

    def _choose_build(self, attempt: RecordedBuild, *, strong: bool) -> list[Message] | None:
        """The messages of the strongly or the weakly typed build; None if that failed without a word."""
        builds = list(_split(self._messages((attempt.model, attempt.precision))))
        if not any(note.startswith(_WEAK) for note in attempt.notes):
            return builds[0]
        if len(builds) > 1:
            return builds[0 if strong else 1]
        return None if strong else builds[0]

    def _find(self, model: Any) -> RecordedBuild | None:
        return self._attempts.get(_known_graphs().get(model.SerializeToString(), ("", "")))

    def _messages(self, key: tuple[str, str]) -> list[Message]:
        return list(parse_messages(self._read(self._attempts[key], BUILD_LOG).split("\n")))

    def _read(self, attempt: RecordedBuild, name: str) -> str:
        path = self._folder / attempt.folder / name
        return path.read_text() if path.exists() else ""


@cache
def _known_graphs() -> dict[bytes, tuple[str, str]]:
    """The models of the board kit: graph -> model, precision."""
    graphs = {}
    with tarfile.open(ASSET) as archive:
        for entry in archive:
            if entry.name.endswith(f"/{GRAPH}"):
                file = archive.extractfile(entry)
                assert file is not None
                model, precision, _ = entry.name.split("/")
                graphs[onnx.load_from_string(file.read()).SerializeToString()] = (model, precision)
    return graphs


def read_plan(messages: list[Message]) -> list[PlanLayer]:
    """The layers in the messages of a build."""
    return parse_plan(line for _, text in messages if "LayerType: " in text for line in text.split("\n"))


def _split(messages: list[Message]) -> Iterator[list[Message]]:
    """Each build of a log. A build begins with the parser's header, whose first line is a ruler."""
    starts = [n for n, (_, text) in enumerate(messages) if text.startswith(_NEW_BUILD)][1:]
    places = [0, *(start - 1 for start in starts), len(messages)]
    yield from (messages[start:end] for start, end in pairwise(places))


def _say_all(trt: Any, logger: Any, config: Any, messages: list[Message]) -> bool:
    """Log all messages and phases. Return False if the build was cancelled."""
    monitor = config.progress_monitor
    for severity, text in messages:
        if severity in trt.ILogger.Severity.__members__:
            say(logger, severity, text)
        elif severity == "PHASE" and monitor is not None:
            heard(monitor)
            type(monitor).phase_start(monitor, text, None, 1)
            if not type(monitor).step_complete(monitor, text, 0):
                return False
            type(monitor).phase_finish(monitor, text)
    return True


def _describe(layer: PlanLayer) -> dict[str, Any]:
    types = [tensor.dtype for tensor in (*layer.inputs, *layer.constants)]
    return {"name": layer.name, "kind": layer.kind, "nodes": list(layer.onnx_nodes), "types": types}
