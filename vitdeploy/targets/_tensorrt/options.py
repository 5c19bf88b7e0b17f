"""The build options and the dialect that the targets TensorRT and TensorRT-RTX share."""

from __future__ import annotations

from collections.abc import Callable, Collection
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

LACKS = {
    "AffineGrid": "affine_grid",
    "Bernoulli": "bernoulli",
    "BitShift": "shifted integers",
    "BitwiseAnd": "& on integers",
    "BitwiseNot": "~ on integers",
    "BitwiseOr": "| on integers",
    "BitwiseXor": "^ on integers",
    "CenterCropPad": "cropping and padding to a size",
    "Col2Im": "nn.Fold",
    "Compress": "selecting by a mask",
    "ConcatFromSequence": "joining a list of tensors",
    "DFT": "torch.fft",
    "Det": "torch.linalg.det",
    "MaxRoiPool": "pooling of regions",
    "MaxUnpool": "nn.MaxUnpool2d",
    "Multinomial": "torch.multinomial",
    "SequenceAt": "a list of tensors",
    "SequenceConstruct": "a list of tensors",
    "SequenceEmpty": "a list of tensors",
    "SequenceErase": "a list of tensors",
    "SequenceInsert": "a list of tensors",
    "SequenceLength": "a list of tensors",
    "SequenceMap": "a list of tensors",
    "SplitToSequence": "a list of tensors",
    "Unique": "torch.unique",
}
"""Operators that a PyTorch model can have and that the parser of no TensorRT knows (onnx-tensorrt's list of supported
operators of releases 8.4 and 10.15; TensorRT-RTX 1.7's `supports_operator`). Operators of quantized files are not
listed: `parse_error` says how to quantize instead."""

DIALECT = Dialect(
    opset=20,
    attention="primitives",
    packed_qkv=False,
    activation_codes="int8",
    half_around=True,
    fused_attention=FUSED,
    int8_attention=INT8,
    lacks=LACKS,
)
"""Plain primitives: an `Attention` node without a dedicated kernel fails the build. TensorRT 10.3 parses the opset. The
version on the device is not known before."""

FIRST_WITH = {"fp8": 89, "bf16": 80}
"""The first generation with units for a type. FP8: Ada; not Ampere (sm86, Jetson Orin's sm87). BF16: Ampere; not
Turing."""

_DLA = (
    "the DLA runs none of a Vision Transformer's LayerNorm, GELU and attention: TensorRT would silently run nearly "
    "everything on the GPU, with a copy at every change between the two"
)


class EngineOptions(Frozen):
    """The options of a target that a recipe can set.

    Attributes:
        workspace_bytes: scratch memory for a kernel.
        optimization_level: 0 (fast build) to 5.
        typing: "weak" lets TensorRT 10 choose each layer's precision.
        hardware_compatibility: other GPUs on which the engine must run.
        version_compatible: whether other versions of the same major TensorRT can open it.
        timing_cache: whether to store kernel timings for the next build.
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
        watched: Collection[str] = (),
        on_message: Callable[[str, str], None] | None = None,
    ) -> Compiled:
        """Build the engine with `trt`, the loaded `tensorrt` or `tensorrt_rtx`; see `compile_engine`.

        With `watched`, values inside the graph, those that can be marked are among the names of its outputs.

        Raises:
            CompileError: TensorRT refused the graph, the options or the machine.
        """
        if gpu is not None and gpu.integrated and self.hardware_compatibility != "none":
            raise CompileError(
                f"a Jetson cannot build engines for other GPUs than its own ({gpu.name}): TensorRT supports "
                "hardware_compatibility on discrete GPUs only",
                fix="Leave out the option, and compile the bundle on each kind of board.",
            )
        options = BuildOptions(
            compute_capabilities=compute_capabilities,
            workspace_bytes=self.workspace_bytes,
            optimization_level=self.optimization_level,
            typing=self.typing,
            hardware_level=self.hardware_compatibility,
            version_compatible=self.version_compatible,
            watched=frozenset(watched),
        )
        return compile_engine(
            trt, bundle, workdir, options,
            gpu=gpu, keep_timings=self.timing_cache, report=report, on_message=on_message,
        )  # fmt: skip


def refuse_dla(device: str) -> str:
    """Return a valid `device`.

    Raises:
        ValueError: it is a deep learning accelerator of a Jetson.
    """
    if device.lower().startswith("dla"):
        raise ValueError(f"{device} is refused: {_DLA}. Leave out the device")
    return device
