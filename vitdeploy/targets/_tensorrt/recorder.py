"""TensorRT and TensorRT-RTX for a recording: properties, builds with all of their messages, inspected engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from vitdeploy import frozen
from vitdeploy.errors import VitdeployError
from vitdeploy.graph.dialect import Numbers
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled
from vitdeploy.targets._tensorrt.api import Api
from vitdeploy.targets._tensorrt.engine import audit_engine
from vitdeploy.targets._tensorrt.gpu import Gpu, find_gpu
from vitdeploy.targets._tensorrt.inspector import parse_inspector
from vitdeploy.targets._tensorrt.options import EngineOptions
from vitdeploy.targets._tensorrt.plan import parse_plan
from vitdeploy.targets._tensorrt.session import inspect_engine, open_engine
from vitdeploy.targets._tensorrt.surface import list_members
from vitdeploy.targets._tensorrt.trtexec import find_trtexec, read_version

_PROPERTIES = ("has_complete_strong_typing", "has_weak_typing", "has_timing_cache", "newest_opset")


@dataclass(frozen=True)
class EngineRecorder:
    """Either TensorRT, on this machine's GPU or ahead of time; see `vitdeploy.targets.CompilerRecorder`.

    Attributes:
        trt: the loaded `tensorrt` or `tensorrt_rtx`.
        target: the name of the target.
        options: of the builds.
        numbers: the types of the models.
        generations: the GPU generations to compile for.
        ahead_of_time: whether no GPU is needed; else the engine is for this machine's.
    """

    trt: ModuleType
    target: str
    options: EngineOptions
    numbers: Numbers
    generations: tuple[str, ...] = ()
    ahead_of_time: bool = False

    @property
    def device(self) -> str:
        """The GPU generations, or GPU."""
        return ",".join(self.generations) or "GPU"

    def describe(self) -> dict[str, object]:
        """Return version, properties and members of the bindings, the GPU, and trtexec's version."""
        api = Api(self.trt)
        return {
            "backend": api.backend,
            "properties": {name: getattr(api, name) for name in _PROPERTIES},
            "compute_capabilities": list(api.compute_capabilities),
            "surface": list_members(self.trt),
            "gpu": _answer(lambda: find_gpu().model_dump(mode="json")),
            "trtexec": None if api.is_rtx else _answer(_read_trtexec),
        }

    def compile(self, bundle: Bundle, workdir: Path, on_message: Callable[[str, str], None]) -> Compiled:
        """Build the engine, and audit it."""
        options = frozen.replace(self.options, timing_cache=False)
        gpu: Gpu | None = None if self.ahead_of_time else find_gpu()
        compiled = options.build(
            self.trt, bundle, workdir, compute_capabilities=self.generations, gpu=gpu, on_message=on_message
        )
        return replace(compiled, audit=audit_engine(self.target, bundle, compiled))

    def inspect(self, compiled: Compiled) -> str:
        """Return the engine inspector's JSON."""
        return inspect_engine(self.trt, (compiled.folder / compiled.runs).read_bytes())

    def count_layers(self, log_lines: list[str], description: str) -> tuple[int, int]:
        """Return the layers that `parse_plan` and `parse_inspector` read."""
        return len(parse_plan(log_lines)), len(parse_inspector(description))

    def open(self, compiled: Compiled) -> Session:
        """Open the engine on this machine's GPU."""
        return open_engine(self.trt, compiled, f"{self.target}-{self.numbers.precision}")


def _answer(ask: Callable[[], object]) -> object:
    """Return the answer, or the reason why there is none."""
    try:
        return ask()
    except VitdeployError as error:
        return {"why": error.message}


def _read_trtexec() -> object:
    executable = find_trtexec()
    return {"why": "trtexec is not installed"} if executable is None else {"version": read_version(executable)}
