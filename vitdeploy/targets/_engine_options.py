"""What TensorRT and TensorRT-RTX share as targets: the options of a build, and the graph they compile best."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated

from pydantic import Field

from vitdeploy.graph.dialect import Dialect
from vitdeploy.recipe import Frozen
from vitdeploy.targets import Bundle, Compiled
from vitdeploy.targets._tensorrt_attention import FUSED, INT8
from vitdeploy.targets._tensorrt_engine import compile_engine

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


class EngineOptions(Frozen):
    """The fields that a recipe may set for a build, and the build with them."""

    workspace_bytes: Annotated[int, Field(gt=0)] | None = None
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None

    def build(self, trt: ModuleType, bundle: Bundle, workdir: Path, compute_capability: str | None = None) -> Compiled:
        """Build the engine with `trt`, the loaded `tensorrt` or `tensorrt_rtx`; see `compile_engine`."""
        return compile_engine(
            trt,
            bundle,
            workdir,
            compute_capability=compute_capability,
            workspace_bytes=self.workspace_bytes,
            optimization_level=self.optimization_level,
        )
