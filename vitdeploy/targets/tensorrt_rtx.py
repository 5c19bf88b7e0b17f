"""TensorRT-RTX: compiles ahead of time for a GPU generation, on any x86 machine, with or without a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from vitdeploy.artifact import Artifact
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import Dialect
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled, Target
from vitdeploy.targets._tensorrt import supported_compute_capabilities
from vitdeploy.targets._tensorrt_engine import audit_engine, compile_engine, refuse_to_run


class TensorRTRTX(Target):
    """Compile for `device`, a GPU generation such as sm86."""

    precisions: ClassVar[tuple[str, ...]] = ("fp16", "fp32")
    device: str = "sm86"
    workspace_bytes: Annotated[int, Field(gt=0)] | None = None
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None

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

    def dialect(self) -> Dialect:
        """Clean primitives: an `Attention` node without a dedicated kernel fails the build."""
        return Dialect(opset=20, attention="primitives")

    def compile(self, bundle: Bundle, workdir: Path) -> Compiled:
        """Build the engine ahead of time."""
        import tensorrt_rtx as trt

        return compile_engine(
            trt,
            bundle,
            workdir,
            compute_capability=self.device.lower(),
            workspace_bytes=self.workspace_bytes,
            optimization_level=self.optimization_level,
        )

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Read the layer plan that the build printed."""
        return audit_engine(self.name, bundle, compiled)

    def open(self, artifact: Artifact, threads: int | None) -> Session:  # noqa: ARG002  the contract of all targets
        """Refuse: see `refuse_to_run`."""
        refuse_to_run(artifact)
