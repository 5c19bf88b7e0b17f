"""What TensorRT and TensorRT-RTX share as targets: the options of a build, and the graph they compile best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated

from pydantic import Field

from vitdeploy.errors import CompileError
from vitdeploy.graph.dialect import Dialect
from vitdeploy.recipe import Frozen
from vitdeploy.targets import Bundle, Compiled
from vitdeploy.targets._tensorrt.api import HardwareLevel, Typing
from vitdeploy.targets._tensorrt.attention import FUSED, INT8
from vitdeploy.targets._tensorrt.build import BuildOptions
from vitdeploy.targets._tensorrt.engine import compile_engine
from vitdeploy.targets._tensorrt.gpu import Gpu

DIALECT = Dialect(
    opset=20,
    attention="primitives",
    packed_qkv=False,
    activation_codes="int8",
    half_around=True,
    fused_attention=FUSED,
    int8_attention=INT8,
)
"""Clean primitives: an `Attention` node without a dedicated kernel fails the build. The opset is one that TensorRT 10.3
parses, since which version runs is known only on the device."""

_DLA = (
    "the DLA runs none of a Vision Transformer's LayerNorm, GELU and attention: TensorRT would silently give nearly "
    "all of it back to the GPU, with a copy at every change of sides"
)


class EngineOptions(Frozen):
    """The fields that a recipe may set for a build, and the build with them.

    `workspace_bytes`: scratch memory of a kernel. `optimization_level`: 0 (quick build) to 5. `typing`: "weak" lets
    TensorRT 10 choose each layer's precision. `hardware_compatibility`: GPUs beside this one that shall run it.
    `version_compatible`: other versions of the same major TensorRT may open it. `timing_cache`: keep kernel timings.
    """

    workspace_bytes: Annotated[int, Field(gt=0)] | None = None
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    typing: Typing = "auto"
    hardware_compatibility: HardwareLevel = "none"
    version_compatible: bool = False
    timing_cache: bool = True

    def build(
        self,
        trt: ModuleType,
        bundle: Bundle,
        workdir: Path,
        *,
        compute_capabilities: tuple[str, ...] = (),
        gpu: Gpu | None = None,
        report: Callable[[str], None] | None = None,
    ) -> Compiled:
        """Build the engine with `trt`, the loaded `tensorrt` or `tensorrt_rtx`; see `compile_engine`.

        Raises:
            CompileError: TensorRT refused the graph, the options or the machine.
        """
        if gpu is not None and gpu.integrated and self.hardware_compatibility != "none":
            raise CompileError(
                f"engines for other GPUs than {gpu.name} are not to be had on a Jetson: TensorRT supports "
                "hardware_compatibility on discrete GPUs only",
                fix="Leave the option out, and compile the bundle on each kind of board.",
            )
        options = BuildOptions(
            compute_capabilities=compute_capabilities,
            workspace_bytes=self.workspace_bytes,
            optimization_level=self.optimization_level,
            typing=self.typing,
            hardware_level=self.hardware_compatibility,
            version_compatible=self.version_compatible,
        )
        return compile_engine(trt, bundle, workdir, options, gpu=gpu, keep_timings=self.timing_cache, report=report)


def refuse_dla(device: str) -> str:
    """A validator of `device`: everything but the deep learning accelerators of a Jetson."""
    if device.lower().startswith("dla"):
        raise ValueError(f"{device} is refused: {_DLA}. Leave it out")
    return device
