"""The devices of the target onnxruntime: the graph, precisions and provider of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vitdeploy.graph.dialect import Dialect
from vitdeploy.targets._tensorrt.options import DIALECT as TENSORRT

CPU, CUDA, TRT_RTX = "CPU", "cuda", "trt-rtx"

_LEAST_POINTWISE = 32
"""With fewer channels the moves around the integer product cost what it gains, or more: benchmarks/pointwise.md."""


@dataclass(frozen=True)
class RuntimeDevice:
    """A device that ONNX Runtime runs on.

    Attributes:
        name: as users write it.
        runs_on: the type of device, as PyTorch names it.
        precisions: that it takes, its default first.
        dialect: the form of graph that it compiles best.
        provider: the execution provider, as ONNX Runtime names it.
        place: where it computes, in words.
        first_with: the first GPU generation with units for a type.
    """

    name: str
    runs_on: Literal["cpu", "cuda"]
    precisions: tuple[str, ...]
    dialect: Dialect
    provider: str
    place: str
    first_with: Mapping[str, int]


_ON_CPU = RuntimeDevice(
    name=CPU,
    runs_on="cpu",
    precisions=("fp32", "int8", "int8-dynamic", "int8-weights", "int4-weights"),
    # Its own attention and integer operators, which it would not fuse by itself. q, k and v have a linear each, and
    # MultiHeadAttention reads their outputs directly.
    dialect=Dialect(
        opset=20,
        attention="multihead",
        int8_linears="integer",
        packed_qkv=False,
        int8_weight_group=64,
        least_pointwise=_LEAST_POINTWISE,
    ),
    provider="CPUExecutionProvider",
    place="this CPU",
    first_with={},
)
_ON_CUDA = RuntimeDevice(
    name=CUDA,
    runs_on="cuda",
    # No INT8: the CUDA provider has no kernel for MatMulIntegerToFloat, and runs a Q/DQ pair as two kernels more
    # before a product in float.
    precisions=("fp32", "fp16", "bf16"),
    # MultiHeadAttention is the operator behind which the CUDA provider has its fused kernels. It reads q, k and v of
    # three linears directly; packed, it would take flash attention from 513 tokens on only.
    dialect=Dialect(opset=20, attention="multihead", packed_qkv=False, half_around=True),
    provider="CUDAExecutionProvider",
    place="CUDA",
    first_with={"bf16": 80},
)
_ON_TRT_RTX = RuntimeDevice(
    name=TRT_RTX,
    runs_on="cuda",
    precisions=("fp32", "fp16", "bf16", "int8"),
    dialect=TENSORRT,  # the plug-in parses the graph with TensorRT-RTX's own parser
    provider="NvTensorRTRTXExecutionProvider",
    place="TensorRT-RTX",
    first_with={"bf16": 80},
)
DEVICES: Mapping[str, RuntimeDevice] = {device.name: device for device in (_ON_CPU, _ON_CUDA, _ON_TRT_RTX)}


def spell_device(name: str) -> str:
    """Return a device as it is stored, however its letters are written."""
    return next((known for known in DEVICES if known.lower() == name.lower()), name)
