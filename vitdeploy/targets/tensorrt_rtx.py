"""TensorRT-RTX: compiles ahead of time for a GPU generation, on any x86 machine, with or without a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from vitdeploy.errors import UsageError
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import Dialect
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled, Target
from vitdeploy.targets._engine_options import DIALECT, EngineOptions
from vitdeploy.targets._tensorrt import supported_compute_capabilities
from vitdeploy.targets._tensorrt_engine import NOT_RUN, audit_engine, refuse_to_run

_FIRST_WITH = {"fp8": 89, "bf16": 80}
"""FP8: Ada, Hopper and Blackwell; Ampere (sm86, Jetson Orin's sm87) has none. BF16: from Ampere on, Turing has none."""


class TensorRTRTX(EngineOptions, Target):
    """Compile for `device`, a GPU generation such as sm86."""

    precisions: ClassVar[tuple[str, ...]] = ("fp16", "fp32", "bf16", "int8", "fp8")
    device: str = "sm86"

    def unavailable(self) -> Availability | None:
        """Why it cannot compile here: the library is missing, or does not know the device."""
        if find_spec("tensorrt_rtx") is None:
            return Availability(
                available=False, why="tensorrt-rtx is not installed", fix="pip install 'vitdeploy[tensorrt-rtx]'"
            )
        import tensorrt_rtx as trt

        known = supported_compute_capabilities(trt)
        if self.device.lower() not in known:
            return Availability(
                available=False,
                why=f"TensorRT-RTX {trt.__version__} does not compile for {self.device}",
                fix=f"It compiles for {', '.join(known)}.",
            )
        return None

    def check_precision(self, precision: str) -> None:
        """Refuse a number format for a GPU generation that has no such units."""
        super().check_precision(precision)
        generation = self.device.lower().removeprefix("sm")
        first = _FIRST_WITH.get(precision, 0)
        if generation.isdecimal() and int(generation) < first:
            able = [p for p in self.precisions if _FIRST_WITH.get(p, 0) <= int(generation)]
            raise UsageError(
                f"{self.device} has no {precision.upper()} units",
                fix=f"Use --device sm{first} or later; {self.device} can do {', '.join(able)}.",
            )

    def cannot_run(self) -> Availability:
        """Engines are compiled and audited here, and run on the device by its own tools."""
        return NOT_RUN

    def dialect(self) -> Dialect:
        """Clean primitives, see `DIALECT`."""
        return DIALECT

    def compile(self, bundle: Bundle, workdir: Path) -> Compiled:
        """Build the engine ahead of time."""
        import tensorrt_rtx as trt

        return self.build(trt, bundle, workdir, compute_capability=self.device.lower())

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Read the layer plan that the build printed."""
        return audit_engine(self.name, bundle, compiled)

    def open(self, compiled: Compiled, precision: str, threads: int | None) -> Session:  # noqa: ARG002  as all targets
        """Refuse: see `refuse_to_run`."""
        refuse_to_run(self.name, compiled)
