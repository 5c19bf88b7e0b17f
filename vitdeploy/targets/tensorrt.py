"""TensorRT: Jetson and discrete GPUs. An engine belongs to one device; elsewhere the bundle is made."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from vitdeploy.errors import CompileError
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import Dialect
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled, Target
from vitdeploy.targets._engine_options import DIALECT, EngineOptions
from vitdeploy.targets._tensorrt_engine import NOT_RUN, audit_engine, refuse_to_run

_GPU_NODES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu")
"""A discrete GPU, and what Jetson's integrated one is called on JetPack 5 to 7."""


class TensorRT(EngineOptions, Target):
    """Compile on the machine with the GPU, for that GPU."""

    precisions: ClassVar[tuple[str, ...]] = ("fp16", "fp32", "bf16", "int8", "fp8")
    built_on_device: ClassVar[bool] = True
    device: str = "GPU"

    def unavailable(self) -> Availability | None:
        """Why it cannot compile here: no library, or no GPU."""
        fix = "Export here makes a bundle; finish it on the device with: vitdeploy compile DIR"
        if find_spec("tensorrt") is None:
            return Availability(available=False, why="TensorRT is not installed here", fix=fix)
        if not any(Path(node).exists() for node in _GPU_NODES):
            return Availability(available=False, why="this machine has no NVIDIA GPU", fix=fix)
        return None

    def cannot_run(self) -> Availability:
        """Engines are compiled and audited here, and run on the device by its own tools."""
        return NOT_RUN

    def dialect(self) -> Dialect:
        """Clean primitives, see `DIALECT`."""
        return DIALECT

    def compile(self, bundle: Bundle, workdir: Path) -> Compiled:
        """Build the engine for this machine's GPU."""
        try:
            import tensorrt as trt
        except (ImportError, OSError) as error:
            raise CompileError(
                f"TensorRT does not load: {error}",
                fix="Install JetPack's python3-libnvinfer, or TensorRT's full wheels.",
            ) from None
        return self.build(trt, bundle, workdir)

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Read the layer plan that the build printed."""
        return audit_engine(self.name, bundle, compiled)

    def open(self, compiled: Compiled, precision: str, threads: int | None) -> Session:  # noqa: ARG002  as all targets
        """Refuse: see `refuse_to_run`."""
        refuse_to_run(self.name, compiled)
