"""Build a TensorRT or TensorRT-RTX engine from an ONNX file.

`trt` is always the loaded `tensorrt` or `tensorrt_rtx` module. The differences between their versions are in `api`.
Networks are strongly typed: only the graph decides the precision. Strong typing is incomplete before TensorRT 10.12. If
a build fails there, a weakly typed build follows, and a note says so. The layers of an engine are read from the build
log (see `plan`), which works without a GPU.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from vitdeploy.errors import CompileError, QuantizeError
from vitdeploy.targets._tensorrt.api import Api, HardwareLevel, Typing
from vitdeploy.targets._tensorrt.errors import build_error, builder_error, is_out_of_memory, parse_error
from vitdeploy.targets._tensorrt.log import BuildLog, make_logger, make_monitor
from vitdeploy.targets._tensorrt.marks import mark_outputs

Shape = tuple[int, ...]
ShapeProfile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input name -> smallest, optimal and largest shape."""


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build.

    Attributes:
        precision: the type in which linears multiply. INT8 and FP8 need Q/DQ pairs in the graph.
        compute_capabilities: such as `sm86`, for TensorRT-RTX only. Empty: TensorRT builds for the GPU of this machine,
            TensorRT-RTX for its own default, a range of GPU generations.
        workspace_bytes: scratch memory for a kernel; None: TensorRT's default, all of the device.
        optimization_level: 0 (fast build) to 5; None: TensorRT's default.
        profile: shapes of the inputs with dynamic dimensions.
        typing: "auto" is strong, or weak if that fails and this TensorRT's strong typing is incomplete.
        hardware_level: other GPUs on which the engine must run.
        version_compatible: whether other versions of the same major TensorRT can load it.
        timing_cache: a file with kernel timings of earlier builds on this machine; read if it exists.
        watched: values inside the graph to mark as further outputs. Nothing is fused across one of them.
    """

    precision: str = "fp32"
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    profile: ShapeProfile = field(default_factory=dict)
    typing: Typing = "auto"
    hardware_level: HardwareLevel = "none"
    version_compatible: bool = False
    timing_cache: Path | None = None
    watched: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine and the evidence of its contents.

    Attributes:
        plan: the engine.
        layer_plan: the layers as TensorRT printed them, for `parse_plan`. Machines that cannot open the engine can read
            it. Empty if this TensorRT prints none: then nothing is known about fusion.
        typing: the typing of the network.
        seconds: how long the build took.
        timings: the timing cache after the build; empty if there is none.
        marked: the watched values that the engine gives as outputs, in their order.
        notes: remarks for the user.
    """

    plan: bytes
    layer_plan: str
    typing: Literal["strong", "weak"]
    seconds: float
    timings: bytes = b""
    marked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def build_engine(
    trt: ModuleType,
    onnx_path: Path,
    options: BuildOptions | None = None,
    *,
    on_line: Callable[[str], None] | None = None,
    on_message: Callable[[str, str], None] | None = None,
) -> BuiltEngine:
    """Compile the ONNX file `onnx_path`, with external data beside it, into an engine.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        onnx_path: a graph in the operators that TensorRT parses.
        options: of the build; all defaults if left out.
        on_line: called with build phases and log lines above VERBOSE, in the calling thread.
        on_message: called with the severity and the text of every message, in TensorRT's thread.

    Raises:
        CompileError: TensorRT refused the graph, the options or the machine. The message names the ONNX node, or ends
            with TensorRT's last errors.
        QuantizeError: the precision is INT8 or FP8 and the graph has no Q/DQ pair.
    """
    options = options or BuildOptions()
    api, on_line = Api(trt), on_line or (lambda _: None)
    try:
        first: Literal["strong", "weak"] = "weak" if options.typing == "weak" else "strong"
        return _build(api, onnx_path, options, first, on_line, on_message)
    except _BuildRefused as refusal:
        may_retry = options.typing == "auto" and api.has_weak_typing and not api.has_complete_strong_typing
        if not may_retry or refusal.for_memory:
            raise refusal.error from None
        reason = refusal.error.message
    try:
        engine = _build(api, onnx_path, options, "weak", on_line, on_message)
    except _BuildRefused as refusal:
        raise refusal.error from None
    note = (
        "built weakly typed (TensorRT chooses the precision of each layer), because a strongly typed build failed: "
        f"{reason}"
    )
    return replace(engine, notes=(note,))


class _BuildRefused(Exception):
    """A build that TensorRT refused, with the error for the user."""

    def __init__(self, error: CompileError, *, for_memory: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.for_memory = for_memory


def _build(
    api: Api,
    onnx_path: Path,
    options: BuildOptions,
    typing: Literal["strong", "weak"],
    on_line: Callable[[str], None],
    on_message: Callable[[str, str], None] | None,
) -> BuiltEngine:
    log, start = BuildLog(on_message), time.monotonic()

    def serialize() -> _Serialized:
        return _serialize_and_free(api, onnx_path, options, typing, log)

    built = _run_interruptibly(serialize, log, on_line)
    return BuiltEngine(
        built.plan, log.layer_plan, typing, time.monotonic() - start, built.timings, tuple(built.marked)
    )  # fmt: skip


@dataclass(frozen=True)
class _Serialized:
    """An engine and its timing cache as bytes, and the values that were marked as outputs."""

    plan: Any
    timings: bytes
    marked: list[str]


def _run_interruptibly(build: Callable[[], _Serialized], log: BuildLog, on_line: Callable[[str], None]) -> _Serialized:
    """Run `build` in a thread, and pass on its log lines from this one.

    TensorRT ignores exceptions of its Python callbacks, even a KeyboardInterrupt. In the main thread a build would go
    on after Ctrl-C. Here the main thread only waits. So Ctrl-C (or an error of `on_line`) is raised at once. It cancels
    the build, which TensorRT notices at its next step, and is raised again when the build has stopped.
    """
    gc.collect()  # see _serialize_and_free
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


def _serialize_and_free(
    api: Api, onnx_path: Path, options: BuildOptions, typing: Literal["strong", "weak"], log: BuildLog
) -> _Serialized:
    """Build and serialize an engine and its timing cache, and free all TensorRT objects.

    TensorRT holds a lock while it calls the logger, and needs the same lock to free a builder. If the traceback of a
    failed build keeps a dead builder, and the garbage collector frees it inside such a call, that is a deadlock.
    """
    try:
        built = _serialize(api, onnx_path, options, typing, log)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    return replace(built, plan=bytes(built.plan))  # by now the network, which holds the weights, is freed


def _serialize(
    api: Api, onnx_path: Path, options: BuildOptions, typing: Literal["strong", "weak"], log: BuildLog
) -> _Serialized:
    logger = make_logger(api.trt, log)
    try:
        builder = api.trt.Builder(logger)
    except TypeError as error:  # pybind raises it if a factory returns null
        raise builder_error(api, log) from error
    network = builder.create_network(api.network_flags(typing))
    parser = api.trt.OnnxParser(network, logger)  # owns the weights, so it must live as long as the build
    if not parser.parse_from_file(str(onnx_path)):
        raise _BuildRefused(parse_error(api, parser, onnx_path, log), for_memory=False)
    _check_quantized(api, network, options.precision)
    _check_profile(network, options.profile)
    marked = mark_outputs(network, options.watched) if options.watched else []
    config = _make_config(api, builder, options, log)
    if typing == "weak":
        api.allow_precision(config, options.precision)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _BuildRefused(build_error(api, onnx_path, log), for_memory=is_out_of_memory(log))
    return _Serialized(serialized, _serialize_timings(config, options), marked)


def _make_config(api: Api, builder: Any, options: BuildOptions, log: BuildLog) -> Any:
    trt = api.trt
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # puts the ONNX node names into the plan
    config.progress_monitor = make_monitor(trt, log)
    if options.compute_capabilities:
        api.set_compute_capabilities(config, options.compute_capabilities)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    api.set_hardware_level(config, options.hardware_level)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.timing_cache is not None:
        timings = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        # It returns None if the file is damaged or of another TensorRT. Then the cache starts empty.
        cache = config.create_timing_cache(timings) or config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    if options.profile:
        shapes = builder.create_optimization_profile()
        for name, (smallest, optimal, largest) in options.profile.items():
            shapes.set_shape(name, smallest, optimal, largest)
        config.add_optimization_profile(shapes)  # the build itself reports errors in it
    return config


def _serialize_timings(config: Any, options: BuildOptions) -> bytes:
    cache = config.get_timing_cache() if options.timing_cache is not None else None
    return bytes(cache.serialize()) if cache is not None else b""


def _check_quantized(api: Api, network: Any, precision: str) -> None:
    """Refuse an INT8 or FP8 engine without Q/DQ pairs: TensorRT itself no longer calibrates."""
    if precision not in ("int8", "fp8"):
        return
    if not any(api.is_quantizer(network.get_layer(index)) for index in range(network.num_layers)):
        raise QuantizeError(
            f"the graph has no Q/DQ pair, so it is not calibrated for {precision}",
            fix="Export it again with --calibration DATA.",
        )


def _check_profile(network: Any, profile: ShapeProfile) -> None:
    """Refuse a profile that does not cover the inputs, with a fix, which TensorRT's message lacks."""
    inputs = {tensor.name: tuple(tensor.shape) for tensor in map(network.get_input, range(network.num_inputs))}
    if unknown := sorted(profile.keys() - inputs.keys()):
        raise CompileError(
            f"The shape profile names {', '.join(unknown)}, which is not an input of the graph",
            fix=f"Its inputs are {', '.join(inputs)}.",
        )
    for name, shape in inputs.items():
        if -1 in shape and name not in profile:
            raise CompileError(
                f"Input {name} has the shape {list(shape)} with a dynamic dimension and no shape profile",
                fix="Give --batch MIN:OPT:MAX or --image-size MIN:OPT:MAX, or export it with fixed sizes.",
            )
