"""TensorRT-RTX: engines for GPU generations, compiled on any x86 machine, even without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from vitdeploy.environment import Host
from vitdeploy.errors import TargetUnavailable
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import Dialect, Numbers
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled, Target
from vitdeploy.targets._recording import CompilerRecorder
from vitdeploy.targets._tensorrt.api import Api
from vitdeploy.targets._tensorrt.engine import audit_engine
from vitdeploy.targets._tensorrt.gpu import find_gpu
from vitdeploy.targets._tensorrt.options import DIALECT, FIRST_WITH, LACKS, EngineOptions, refuse_dla
from vitdeploy.targets._tensorrt.recorder import EngineRecorder
from vitdeploy.targets._tensorrt.session import open_engine

_WITH_ALL_NUMBERS = "sm89"
_PLUGINS = {"DeformConv": "torchvision.ops.deform_conv2d"}
"""Operators that TensorRT has as plugins, which TensorRT for RTX comes without."""


class TensorRTRTX(EngineOptions, Target):
    """Compile for `device`, a GPU generation such as sm86, or several: sm86,sm89."""

    precisions: ClassVar[tuple[str, ...]] = ("fp16", "fp32", "bf16", "int8", "fp8")
    title: ClassVar[str] = "TensorRT for RTX"
    engine_module: ClassVar[str] = "tensorrt_rtx"
    runs_suffix: ClassVar[str] = ".plan"
    is_recorded: ClassVar[bool] = True
    device: Annotated[str, AfterValidator(refuse_dla)] = "sm86"

    @property
    def runs_on(self) -> Literal["cpu", "cuda"]:
        """The GPU."""
        return "cuda"

    @property
    def generations(self) -> tuple[str, ...]:
        """The compute capabilities, without duplicates."""
        return tuple(dict.fromkeys(part.strip().lower() for part in self.device.split(",")))

    def unavailable(self) -> Availability | None:
        """Return the reason if the library is missing, or does not know the device."""
        if find_spec("tensorrt_rtx") is None:
            return Availability(
                available=False, why="tensorrt-rtx is not installed", fix="pip install 'vitdeploy[tensorrt-rtx]'"
            )
        import tensorrt_rtx as trt

        supported = Api(trt).compute_capabilities
        unknown = [name for name in self.generations if name not in supported]
        if unknown:
            return Availability(
                available=False,
                why=f"{Api(trt).product} does not compile for {', '.join(unknown)}",
                fix=f"It compiles for {', '.join(supported)}.",
            )
        return None

    def refuse_numbers(self, numbers: Numbers, host: Host | None = None) -> str | None:  # noqa: ARG002  GPUs are named
        """Refuse types for which a GPU generation has no units."""
        generations = {name: int(n) for name in self.generations if (n := name.removeprefix("sm")).isdecimal()}
        for kind in sorted(numbers.types & FIRST_WITH.keys()):
            first = FIRST_WITH[kind]
            without = [name for name, number in generations.items() if number < first]
            if without:
                return f"{', '.join(without)} has no {kind.upper()} units: the first generation with them is sm{first}"
        return None

    def cannot_run(self) -> Availability | None:
        """Return the reason if it cannot run here, else None.

        Compiling needs no GPU. Running needs one of a generation for which it was compiled.
        """
        fix = "Compile here, and run it on the machine with the GPU."
        try:
            gpu = find_gpu()
        except TargetUnavailable as error:
            return self.unavailable() or Availability(available=False, why=error.message, fix=fix)
        if gpu.sm not in self.generations:
            return Availability(available=False, why=f"this is {gpu.description}, not {self.device}", fix=fix)
        return self.unavailable()

    def dialect(self, host: Host | None = None) -> Dialect:  # noqa: ARG002  the GPU computes
        """Return plain primitives, see `DIALECT`."""
        return replace(DIALECT, lacks=LACKS | _PLUGINS)

    def compile(self, bundle: Bundle, workdir: Path, report: Callable[[str], None] | None = None) -> Compiled:
        """Build the engine ahead of time, and audit it."""
        import tensorrt_rtx as trt

        compiled = self.build(trt, bundle, workdir, compute_capabilities=self.generations, report=report)
        return replace(compiled, audit=self.audit(bundle, compiled))

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Read the stored layer plan of the engine."""
        return audit_engine(self.name, bundle, compiled)

    def recorder(self, numbers: Numbers) -> CompilerRecorder | None:
        """Return TensorRT-RTX for a recording: for this machine's GPU, or ahead of time without one that it knows."""
        if find_spec("tensorrt_rtx") is None:
            return None
        import tensorrt_rtx as trt

        try:
            generation = find_gpu().sm
        except TargetUnavailable:
            generation = ""
        if generation not in Api(trt).compute_capabilities:
            generation = self.device if self.refuse_numbers(numbers) is None else _WITH_ALL_NUMBERS
        return EngineRecorder(trt, self.name, EngineOptions(), numbers, (generation,), ahead_of_time=True)

    def installed_engine(self) -> str:
        """Return `tensorrt-rtx VERSION`."""
        if find_spec("tensorrt_rtx") is None:
            return ""
        import tensorrt_rtx as trt

        return Api(trt).backend

    def open(self, compiled: Compiled, numbers: Numbers, threads: int | None) -> Session:  # noqa: ARG002  no CPU threads
        """Open the engine on this machine's GPU. A GPU for which it was not compiled is refused."""
        self.require()
        import tensorrt_rtx as trt

        return open_engine(trt, compiled, f"{self.name}-{numbers.precision}")
