"""Build a TensorRT or TensorRT-RTX engine from an ONNX file: the part that both targets share.

`trt` is everywhere the loaded `tensorrt` or `tensorrt_rtx` module; their Python API is the same. Networks are strongly
typed, so precision lives in the graph alone. Enum members are used, never their numbers, which moved between TensorRT
10 and 11. What an engine runs is read from the build log (`_tensorrt_plan`), which works without a GPU as well.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from vitdeploy.errors import CompileError
from vitdeploy.targets._tensorrt_log import BuildLog, logger_for, monitor_for
from vitdeploy.targets._tensorrt_plan import PlanLayer, parse_plan

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input name -> smallest, optimal and largest shape."""


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine and the evidence of what is in it."""

    plan: bytes
    layer_plan: str
    """The layers as TensorRT printed them, for `parse_plan` to read again where the engine itself cannot be opened.
    Empty where this TensorRT prints none: then nothing is known about fusion."""
    log_tail: tuple[str, ...]
    version: str

    @property
    def layers(self) -> list[PlanLayer]:
        """The layer plan, parsed."""
        return parse_plan(self.layer_plan.split("\n"))


def supported_compute_capabilities(trt: ModuleType) -> tuple[str, ...]:
    """GPU generations that can be compiled for without having one (`sm86`, ..); empty for TensorRT, which cannot."""
    members = trt.ComputeCapability.__members__ if hasattr(trt, "ComputeCapability") else ()
    return tuple(name.lower() for name in members if name.startswith("SM"))


def build_engine(
    trt: ModuleType,
    onnx_path: Path,
    *,
    compute_capability: str | None = None,
    workspace_bytes: int | None = None,
    optimization_level: int | None = None,
    profile: Profile | None = None,
    on_line: Callable[[str], None] | None = None,
) -> BuiltEngine:
    """Compile `onnx_path` (external data beside it is found) into an engine.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        onnx_path: A graph in the operators that TensorRT parses.
        compute_capability: Such as `sm86`, TensorRT-RTX only. None: TensorRT builds for the GPU of this machine,
            TensorRT-RTX for its own default, a range of GPU generations.
        workspace_bytes: Scratch memory that a kernel may use; None leaves TensorRT's default, all of the device.
        optimization_level: 0 (fast build) to 5; None leaves TensorRT's default.
        profile: Shapes of the inputs with dynamic dimensions.
        on_line: Hears about build phases and log lines above VERBOSE, in the calling thread.

    Raises:
        CompileError: TensorRT refused the graph, the options or the machine; the message names the ONNX node or ends
            with TensorRT's own last errors.
    """
    settings = _Settings(compute_capability, workspace_bytes, optimization_level, profile or {})
    log = BuildLog()

    def build() -> bytes:
        return _build(trt, onnx_path, settings, log)

    plan = _interruptible(build, log, on_line or (lambda _: None))
    return BuiltEngine(plan, log.layer_plan, tuple(log.tail), trt.__version__)


@dataclass(frozen=True)
class _Settings:
    compute_capability: str | None
    workspace_bytes: int | None
    optimization_level: int | None
    profile: Profile


def _interruptible(build: Callable[[], bytes], log: BuildLog, on_line: Callable[[str], None]) -> bytes:
    """Run `build` in a thread and pass its log lines on from this one.

    TensorRT swallows what its Python callbacks raise, a KeyboardInterrupt too: built in the main thread, a model goes
    on building after Ctrl-C. Here the main thread only waits, so Ctrl-C (or an error of `on_line`) arrives at once, is
    turned into a cancellation that TensorRT sees at its next step, and goes on its way when the build has stopped.
    """
    gc.collect()  # see _build
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tensorrt-build") as pool:
        future = pool.submit(build)
        future.add_done_callback(lambda _: log.lines.put(None))
        try:
            while (line := log.lines.get()) is not None:
                on_line(line)
        except BaseException:
            log.cancelled.set()
            raise
        return future.result()


def _build(trt: ModuleType, onnx_path: Path, settings: _Settings, log: BuildLog) -> bytes:
    """Parse and build, and leave no TensorRT object behind, whatever happens.

    TensorRT calls the logger with a lock held that freeing a builder takes as well. A dead builder that waits for the
    garbage collector (in the traceback of a failed build) and is found by it inside such a call is a deadlock.
    """
    try:
        serialized = _serialize(trt, onnx_path, settings, log)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    return bytes(serialized)  # by now the network, which holds the weights, is freed


def _serialize(trt: ModuleType, onnx_path: Path, settings: _Settings, log: BuildLog) -> Any:
    logger = logger_for(trt, log)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # pybind's word for a factory that returned null: no driver, no GPU
        raise CompileError(
            f"{_product(trt)} does not start: {log.last_errors()}",
            fix="Build on the machine with the GPU, or use the target tensorrt-rtx, which compiles without one.",
        ) from error
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)  # owns the weights: has to live as long as the build
    if not parser.parse_from_file(str(onnx_path)):
        raise _parse_error(trt, parser, onnx_path, log)
    config = _configure(trt, builder, network, settings, log)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _build_error(trt, onnx_path, log)
    return serialized


def _product(trt: ModuleType) -> str:
    return f"{'TensorRT-RTX' if trt.__name__ == 'tensorrt_rtx' else 'TensorRT'} {trt.__version__}"


def _strongly_typed(trt: ModuleType) -> int:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if flag is None:
        raise CompileError(
            f"{_product(trt)} has no strongly typed networks",
            fix="Use TensorRT 10.3 or newer (JetPack 6.1 or newer).",
        )
    return 1 << int(flag)


def _configure(trt: ModuleType, builder: Any, network: Any, settings: _Settings, log: BuildLog) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # puts the ONNX node names into the plan
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = monitor_for(trt, log)
    if settings.compute_capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(_compute_capability(trt, settings.compute_capability), 0)
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    _check_profile(network, settings.profile)
    if settings.profile:
        shapes = builder.create_optimization_profile()
        for name, (smallest, optimal, largest) in settings.profile.items():
            shapes.set_shape(name, smallest, optimal, largest)
        config.add_optimization_profile(shapes)  # what is wrong with it, the build says in its errors
    return config


def _compute_capability(trt: ModuleType, name: str) -> Any:
    supported = supported_compute_capabilities(trt)
    if name.lower() in supported:
        return trt.ComputeCapability.__members__[name.upper()]
    if not supported:
        raise CompileError(
            f"{_product(trt)} builds for the GPU that it runs on, not for {name}",
            fix="Leave the device out and build on the target, or use the target tensorrt-rtx.",
        )
    raise CompileError(f"{_product(trt)} does not compile for {name}", fix=f"It knows {', '.join(supported)}.")


def _check_profile(network: Any, profile: Profile) -> None:
    """Refuse a profile that does not cover the inputs, in our terms: TensorRT reports this without a cure."""
    inputs = {tensor.name: tuple(tensor.shape) for tensor in map(network.get_input, range(network.num_inputs))}
    if unknown := sorted(profile.keys() - inputs.keys()):
        raise CompileError(
            f"The shape profile names {', '.join(unknown)}, which is no input of the graph",
            fix=f"Its inputs are {', '.join(inputs)}.",
        )
    for name, shape in inputs.items():
        if -1 in shape and name not in profile:
            raise CompileError(
                f"Input {name} has the shape {list(shape)} with a dynamic dimension and no shape profile",
                fix="Give --batch MIN:OPT:MAX, or export with a fixed batch.",
            )


def _parse_error(trt: ModuleType, parser: Any, onnx_path: Path, log: BuildLog) -> CompileError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    at_nodes = [error for error in errors if error.node_operator()]
    if not at_nodes:
        reason = " ".join(errors[0].desc().split()) if errors else log.last_errors()
        return CompileError(
            f"{_product(trt)} cannot read {onnx_path.name}: {reason}",
            fix="Check that the file is a whole ONNX model with its external data beside it.",
        )
    error = at_nodes[0]
    reason = " ".join(error.desc().split())
    more = f" (and {len(at_nodes) - 1} more)" if len(at_nodes) > 1 else ""
    return CompileError(
        f"{_product(trt)} cannot parse the node {error.node_name()!r} ({error.node_operator()}) of "
        f"{onnx_path.name}: {reason}{more}",
        fix="Lower it to operators of opset 20 or older that TensorRT knows, or use another target.",
    )


def _build_error(trt: ModuleType, onnx_path: Path, log: BuildLog) -> CompileError:
    reason = " ".join(log.last_errors().split())
    return CompileError(
        f"{_product(trt)} did not build {onnx_path.name}: {reason}",
        fix=next((fix for symptom, fix in _FIXES.items() if symptom in reason), _FIX_UNKNOWN),
    )


_FIX_UNKNOWN = "Try another precision or target; `--precision fp32` tells whether the precision is the cause."
# What TensorRT says (seen in its errors) -> what to do about it.
_FIXES: Mapping[str, str] = {
    "profile": "Give shapes with MIN <= OPT <= MAX that differ from the graph in its dynamic dimensions only.",
    "not supported by a dedicated kernel": "Lower Attention to MatMul, Softmax and MatMul, or build in FP16 or BF16.",
    "workspace limit": "Raise the workspace size: no kernel fits into it.",
    "OutOfMemory": "Lower the workspace size and the optimization level, and close what else uses the memory.",
    "out of memory": "Lower the workspace size and the optimization level, and close what else uses the memory.",
    "CUDA driver version is insufficient": "No usable NVIDIA driver here: name the device to compile for (sm86, ..).",
}
