"""Build a TensorRT or TensorRT-RTX engine from an ONNX file: the part that both targets share.

`trt` is everywhere the loaded `tensorrt` or `tensorrt_rtx` module; what differs between their versions is in
`_tensorrt_api`. Networks are strongly typed, so precision lives in the graph alone; only where that fails and TensorRT
is older than 10.12, whose strong typing is incomplete, a weakly typed build follows, and says so. What an engine runs
is read from the build log (`_tensorrt_plan`), which works without a GPU as well.
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
from vitdeploy.targets._tensorrt.errors import build_error, no_builder, out_of_memory, parse_error
from vitdeploy.targets._tensorrt.log import BuildLog, logger_for, monitor_for
from vitdeploy.targets._tensorrt.plan import PlanLayer, parse_plan

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input name -> smallest, optimal and largest shape."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        precision: the type that linears multiply in; INT8 and FP8 need Q/DQ pairs in the graph.
        compute_capabilities: such as `sm86`, TensorRT-RTX only. Empty: TensorRT builds for the GPU of this machine,
            TensorRT-RTX for its own default, a range of GPU generations.
        workspace_bytes: scratch memory that a kernel may use; None leaves TensorRT's default, all of the device.
        optimization_level: 0 (fast build) to 5; None leaves TensorRT's default.
        profile: shapes of the inputs with dynamic dimensions.
        typing: "auto" is strong, and weak as a last resort where strong typing is known to be incomplete.
        hardware_level: other GPUs that the engine shall run on.
        version_compatible: whether other versions of one major TensorRT may load it.
        timing_cache: a file with kernel timings of earlier builds on this very machine; read if there, then written.
    """

    precision: str = "fp32"
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    profile: Profile = field(default_factory=dict)
    typing: Typing = "auto"
    hardware_level: HardwareLevel = "none"
    version_compatible: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine and the evidence of what is in it."""

    plan: bytes
    layer_plan: str
    """The layers as TensorRT printed them, for `parse_plan` to read again where the engine itself cannot be opened.
    Empty where this TensorRT prints none: then nothing is known about fusion."""
    log_tail: tuple[str, ...]
    version: str
    typing: Literal["strong", "weak"]
    seconds: float
    timings: bytes = b""
    """The timing cache after the build; empty where there is none."""
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> list[PlanLayer]:
        """The layer plan, parsed."""
        return parse_plan(self.layer_plan.split("\n"))


def build_engine(
    trt: ModuleType,
    onnx_path: Path,
    options: BuildOptions | None = None,
    *,
    on_line: Callable[[str], None] | None = None,
) -> BuiltEngine:
    """Compile `onnx_path` (external data beside it is found) into an engine.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        onnx_path: A graph in the operators that TensorRT parses.
        options: How to build; all defaults if left out.
        on_line: Hears about build phases and log lines above VERBOSE, in the calling thread.

    Raises:
        CompileError: TensorRT refused the graph, the options or the machine; the message names the ONNX node or ends
            with TensorRT's own last errors.
        QuantizeError: the precision is INT8 or FP8 and the graph has no Q/DQ pair.
    """
    options = options or BuildOptions()
    api, heard = Api(trt), on_line or (lambda _: None)
    strict: Literal["strong", "weak"] = "weak" if options.typing == "weak" else "strong"
    try:
        return _built(api, onnx_path, options, strict, heard)
    except _Refused as refused:
        last_resort = options.typing == "auto" and api.has_weak_typing and not api.strong_typing_is_complete
        if not last_resort or refused.for_memory:
            raise refused.error from None
        why = refused.error.message
    built = _built_weakly(api, onnx_path, options, heard)
    note = (
        f"built weakly typed, where TensorRT chooses the precision of each layer, because a strict build failed: {why}"
    )
    return replace(built, notes=(note,))


def _built_weakly(api: Api, onnx_path: Path, options: BuildOptions, heard: Callable[[str], None]) -> BuiltEngine:
    try:
        return _built(api, onnx_path, options, "weak", heard)
    except _Refused as refused:
        raise refused.error from None


class _Refused(Exception):
    """A build that TensorRT refused, with the error to tell."""

    def __init__(self, error: CompileError, *, for_memory: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.for_memory = for_memory


def _built(
    api: Api, onnx_path: Path, options: BuildOptions, typing: Literal["strong", "weak"], heard: Callable[[str], None]
) -> BuiltEngine:
    log, started = BuildLog(), time.monotonic()

    def build() -> tuple[bytes, bytes]:
        return _build(api, onnx_path, options, typing, log)

    plan, timings = _interruptible(build, log, heard)
    seconds = time.monotonic() - started
    return BuiltEngine(plan, log.layer_plan, tuple(log.tail), api.version, typing, seconds, timings)


def _interruptible(
    build: Callable[[], tuple[bytes, bytes]], log: BuildLog, on_line: Callable[[str], None]
) -> tuple[bytes, bytes]:
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


def _build(
    api: Api, onnx_path: Path, options: BuildOptions, typing: Literal["strong", "weak"], log: BuildLog
) -> tuple[bytes, bytes]:
    """Parse and build, and leave no TensorRT object behind, whatever happens.

    TensorRT calls the logger with a lock held that freeing a builder takes as well. A dead builder that waits for the
    garbage collector (in the traceback of a failed build) and is found by it inside such a call is a deadlock.
    """
    try:
        serialized, timings = _serialize(api, onnx_path, options, typing, log)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    return bytes(serialized), timings  # by now the network, which holds the weights, is freed


def _serialize(
    api: Api, onnx_path: Path, options: BuildOptions, typing: Literal["strong", "weak"], log: BuildLog
) -> tuple[Any, bytes]:
    logger = logger_for(api.trt, log)
    try:
        builder = api.trt.Builder(logger)
    except TypeError as error:  # pybind's word for a factory that returned null
        raise no_builder(api, log) from error
    network = builder.create_network(api.network_flags(typing))
    parser = api.trt.OnnxParser(network, logger)  # owns the weights: has to live as long as the build
    if not parser.parse_from_file(str(onnx_path)):
        raise _Refused(parse_error(api, parser, onnx_path, log), for_memory=False)
    _check_quantized(api, network, options.precision)
    _check_profile(network, options.profile)
    config = _configured(api, builder, options, log)
    if typing == "weak":
        api.allow_precision(config, options.precision)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _Refused(build_error(api, onnx_path, log), for_memory=out_of_memory(log))
    return serialized, _timings(config, options)


def _configured(api: Api, builder: Any, options: BuildOptions, log: BuildLog) -> Any:
    trt = api.trt
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # puts the ONNX node names into the plan
    config.progress_monitor = monitor_for(trt, log)
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
        known = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        # None: damaged, or of another TensorRT. It starts anew then.
        cache = config.create_timing_cache(known) or config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    if options.profile:
        shapes = builder.create_optimization_profile()
        for name, (smallest, optimal, largest) in options.profile.items():
            shapes.set_shape(name, smallest, optimal, largest)
        config.add_optimization_profile(shapes)  # what is wrong with it, the build says in its errors
    return config


def _timings(config: Any, options: BuildOptions) -> bytes:
    cache = config.get_timing_cache() if options.timing_cache is not None else None
    return bytes(cache.serialize()) if cache is not None else b""


def _check_quantized(api: Api, network: Any, precision: str) -> None:
    """Refuse to call an engine INT8 or FP8 when its graph quantizes nothing: calibration inside TensorRT is gone."""
    if precision not in ("int8", "fp8"):
        return
    if not any(api.is_quantizer(network.get_layer(index)) for index in range(network.num_layers)):
        raise QuantizeError(
            f"the graph has no Q/DQ pair, so it was never calibrated for {precision}",
            fix="Export it again with --calibration DATA.",
        )


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
