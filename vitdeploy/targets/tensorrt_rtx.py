"""TensorRT-RTX: compiles ahead of time for GPU generations, on any x86 machine, with or without a GPU."""

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
from vitdeploy.targets._tensorrt.api import Api
from vitdeploy.targets._tensorrt.engine import audit_engine
from vitdeploy.targets._tensorrt.gpu import gpu
from vitdeploy.targets._tensorrt.options import DIALECT, EngineOptions, refuse_dla
from vitdeploy.targets._tensorrt.session import open_engine

_FIRST_WITH = {"fp8": 89, "bf16": 80}
"""FP8: Ada, Hopper and Blackwell; Ampere (sm86, Jetson Orin's sm87) has none. BF16: from Ampere on, Turing has none."""


class TensorRTRTX(EngineOptions, Target):
    """Compile for `device`, a GPU generation such as sm86, or several: sm86,sm89."""

    precisions: ClassVar[tuple[str, ...]] = ("fp16", "fp32", "bf16", "int8", "fp8")
    engine_module: ClassVar[str] = "tensorrt_rtx"
    runs_on: ClassVar[Literal["cpu", "cuda"]] = "cuda"
    device: Annotated[str, AfterValidator(refuse_dla)] = "sm86"

    @property
    def generations(self) -> tuple[str, ...]:
        """The compute capabilities, each once."""
        return tuple(dict.fromkeys(part.strip().lower() for part in self.device.split(",")))

    def unavailable(self) -> Availability | None:
        """Why it cannot compile here: the library is missing, or does not know the device."""
        if find_spec("tensorrt_rtx") is None:
            return Availability(
                available=False, why="tensorrt-rtx is not installed", fix="pip install 'vitdeploy[tensorrt-rtx]'"
            )
        import tensorrt_rtx as trt

        known = Api(trt).compute_capabilities
        unknown = [name for name in self.generations if name not in known]
        if unknown:
            return Availability(
                available=False,
                why=f"{Api(trt).product} does not compile for {', '.join(unknown)}",
                fix=f"It compiles for {', '.join(known)}.",
            )
        return None

    def refuse_numbers(self, numbers: Numbers, host: Host | None = None) -> str | None:  # noqa: ARG002  GPUs are named
        """Refuse a number format for a GPU generation that has no such units."""
        generations = {name: int(n) for name in self.generations if (n := name.removeprefix("sm")).isdecimal()}
        for kind in sorted(numbers.types & _FIRST_WITH.keys()):
            first = _FIRST_WITH[kind]
            without = [name for name, number in generations.items() if number < first]
            if without:
                return f"{', '.join(without)} has no {kind.upper()} units, which come with sm{first}"
        return None

    def cannot_run(self) -> Availability | None:
        """Compiling needs no GPU, running does, and one of a generation that was compiled for."""
        fix = "Compile here, and run it on the machine with the GPU."
        try:
            here = gpu()
        except TargetUnavailable as error:
            return self.unavailable() or Availability(available=False, why=error.message, fix=fix)
        if here.sm not in self.generations:
            return Availability(available=False, why=f"this is {here.told}, not {self.device}", fix=fix)
        return self.unavailable()

    def dialect(self) -> Dialect:
        """Clean primitives, see `DIALECT`."""
        return DIALECT

    def compile(self, bundle: Bundle, workdir: Path, report: Callable[[str], None] | None = None) -> Compiled:
        """Build the engine ahead of time, and audit it."""
        import tensorrt_rtx as trt

        compiled = self.build(trt, bundle, workdir, compute_capabilities=self.generations, report=report)
        return replace(compiled, audit=self.audit(bundle, compiled))

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Read the layer plan that the build printed."""
        return audit_engine(self.name, bundle, compiled)

    def open(self, compiled: Compiled, numbers: Numbers, threads: int | None) -> Session:  # noqa: ARG002  no CPU threads
        """Open the engine on this machine's GPU; one that it was not compiled for is refused."""
        self.require()
        import tensorrt_rtx as trt

        return open_engine(trt, compiled.folder, compiled.runs, f"{self.name}-{numbers.precision}")
