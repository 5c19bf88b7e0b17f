"""What TensorRT said when it refused, in terms of the model, with what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.errors import CompileError
from vitdeploy.targets._tensorrt.api import Api
from vitdeploy.targets._tensorrt.log import BuildLog


def no_builder(api: Api, log: BuildLog) -> CompileError:
    """The builder could not be made: no driver, no GPU."""
    return CompileError(
        f"{api.product} does not start: {log.last_errors()}",
        fix="Build on the machine with the GPU, or use the target tensorrt-rtx, which compiles without one.",
    )


def parse_error(api: Api, parser: Any, onnx_path: Path, log: BuildLog) -> CompileError:
    """The graph has a node that this TensorRT does not know; the message names it."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    at_nodes = [error for error in errors if error.node_operator()]
    if not at_nodes:
        reason = " ".join(errors[0].desc().split()) if errors else log.last_errors()
        return CompileError(
            f"{api.product} cannot read {onnx_path.name}: {reason}",
            fix="Check that the file is a whole ONNX model with its external data beside it.",
        )
    error = at_nodes[0]
    reason = " ".join(error.desc().split())
    more = f" (and {len(at_nodes) - 1} more)" if len(at_nodes) > 1 else ""
    return CompileError(
        f"{api.product} cannot parse the node {error.node_name()!r} ({error.node_operator()}) of "
        f"{onnx_path.name}: {reason}{more}",
        fix=f"Lower it to operators of opset {api.newest_opset} or older that TensorRT knows, or use another target.",
    )


def build_error(api: Api, onnx_path: Path, log: BuildLog) -> CompileError:
    """The graph was read and no engine came of it."""
    reason = " ".join(log.last_errors().split())
    if out_of_memory(log):
        asked = f" ({log.refused_bytes / 2**30:.1f} GiB at once)" if log.refused_bytes else ""
        return CompileError(
            f"{api.product} ran out of memory while building {onnx_path.name}{asked}: {reason}", fix=_FIX_MEMORY
        )
    return CompileError(
        f"{api.product} did not build {onnx_path.name}: {reason}",
        fix=next((fix for symptom, fix in _FIXES.items() if re.search(symptom, reason)), _FIX_UNKNOWN),
    )


def out_of_memory(log: BuildLog) -> bool:
    """Whether the build failed for want of memory.

    TensorRT then often ends in "Could not find any implementation for node", as if the node were at fault; what it said
    before about an allocation tells them apart.
    """
    said = " ".join(log.errors)
    return bool(re.search(r"[Oo]ut of memory|OutOfMemory", said)) or (
        log.refused_bytes > 0 and "Could not find any implementation" in said
    )


_FIX_MEMORY = (
    "Lower the workspace (--option workspace_bytes=536870912) and the effort (--option optimization_level=2), "
    "close what else uses the memory, or add swap (8 GB on a board of 8 GB)."
)
_FIX_UNKNOWN = "Try another precision or target; `--precision fp32` tells whether the precision is the cause."
# What TensorRT says (seen in its errors) -> what to do about it.
_FIXES: Mapping[str, str] = {
    "profile": "Give shapes with MIN <= OPT <= MAX that differ from the graph in its dynamic dimensions only.",
    "not supported by a dedicated kernel": "Lower Attention to MatMul, Softmax and MatMul, or build in FP16 or BF16.",
    "workspace limit": "Raise the workspace size: no kernel fits into it.",
    "CUDA driver version is insufficient": "No usable NVIDIA driver here: name the device to compile for (sm86, ..).",
}
