"""Errors for refusals by TensorRT, in terms of the model and with a fix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.errors import CompileError
from vitdeploy.targets._tensorrt.api import Api
from vitdeploy.targets._tensorrt.log import BuildLog

_QUANTIZED = (
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    "QuantizeLinear",
)  # fmt: skip
"""Operators of quantized files, which TensorRT takes in some forms only."""


def builder_error(api: Api, log: BuildLog) -> CompileError:
    """Return the error for a builder without a driver or a GPU."""
    return CompileError(
        f"{api.product} does not start: {log.last_errors()}",
        fix="Build on the machine with the GPU, or use the target tensorrt-rtx, which compiles without one.",
    )


def parse_error(api: Api, parser: Any, onnx_path: Path, log: BuildLog) -> CompileError:
    """Return the error for a graph that cannot be parsed. It names the first unknown node."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    at_nodes = [error for error in errors if error.node_operator()]
    if not at_nodes:
        reason = " ".join(errors[0].desc().split()) if errors else log.last_errors()
        return CompileError(
            f"{api.product} cannot read {onnx_path.name}: {reason}",
            fix="Check that the file is a complete ONNX model, with its external data beside it.",
        )
    error = at_nodes[0]
    reason = " ".join(error.desc().split())
    fix = f"Lower it to operators of opset {api.newest_opset} or older that TensorRT knows, or use another target."
    if error.node_operator() == "Resize" and "Antialiasing" in reason:
        fix = (
            "Let MIN of --image-size be at least the size that the model was trained at, so that no antialiasing is "
            "needed; or give one size, or use another target."
        )
    if error.node_operator() in _QUANTIZED:
        fix = (
            "Quantize the model in symmetric INT8, with float biases and QuantizeLinear/DequantizeLinear pairs; or "
            "give the float model, or use another target."
        )
    more = f" (and {len(at_nodes) - 1} more)" if len(at_nodes) > 1 else ""
    return CompileError(
        f"{api.product} cannot parse the node {error.node_name()!r} ({error.node_operator()}) of "
        f"{onnx_path.name}: {reason}{more}",
        fix=fix,
    )


def build_error(api: Api, onnx_path: Path, log: BuildLog) -> CompileError:
    """Return the error for a graph that was parsed, but not built."""
    reason = " ".join(log.last_errors().split())
    if is_out_of_memory(log):
        size = f" ({log.refused_bytes / 2**30:.1f} GiB at once)" if log.refused_bytes else ""
        return CompileError(
            f"{api.product} ran out of memory while building {onnx_path.name}{size}: {reason}", fix=_FIX_MEMORY
        )
    return CompileError(
        f"{api.product} did not build {onnx_path.name}: {reason}",
        fix=next((fix for symptom, fix in _FIXES.items() if re.search(symptom, reason)), _FIX_UNKNOWN),
    )


def is_out_of_memory(log: BuildLog) -> bool:
    """Return whether the build failed because of too little memory.

    TensorRT's error is then often "Could not find any implementation for node", which blames the node. An earlier
    message about an allocation shows that memory was the cause.
    """
    errors = " ".join(log.errors)
    return bool(re.search(r"[Oo]ut of memory|OutOfMemory", errors)) or (
        log.refused_bytes > 0 and "Could not find any implementation" in errors
    )


_FIX_MEMORY = (
    "Lower the workspace (--option workspace_bytes=536870912) and the effort (--option optimization_level=2), "
    "close other programs that use the memory, or add swap (8 GB on a board of 8 GB)."
)
_FIX_UNKNOWN = "Try another precision or target. If --precision fp32 works, the precision is the cause."
# A part of TensorRT's message -> what to do about it.
_FIXES: Mapping[str, str] = {
    "profile": "Give shapes with MIN <= OPT <= MAX that differ from the graph only in its dynamic dimensions.",
    "not supported by a dedicated kernel": "Lower Attention to MatMul, Softmax and MatMul, or build in FP16 or BF16.",
    "workspace limit": "Raise the workspace size: no kernel fits into it.",
    "CUDA driver version is insufficient": (
        "There is no usable NVIDIA driver here. Name the device to compile for with --device (sm86, …)."
    ),
}
