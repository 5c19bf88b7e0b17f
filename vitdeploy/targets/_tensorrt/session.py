"""Run an engine on this machine's GPU: pinned or shared memory, a CUDA graph where TensorRT lets itself be captured.

On a Jetson CPU and GPU share one memory: inputs and outputs are pinned and mapped, nothing is copied. On a card they
are copied through pinned memory. Only the engine's own work is captured and timed by the GPU's clock, so that time on
the device and the time that a caller waits are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vitdeploy.errors import MeasureError, TargetUnavailable
from vitdeploy.session import Array, Counters, Feeds, SequentialSession, repeat
from vitdeploy.targets._tensorrt.api import Api
from vitdeploy.targets._tensorrt.cuda import Cuda, CudaError
from vitdeploy.targets._tensorrt.gpu import gpu
from vitdeploy.targets._tensorrt.layers import stored_layers
from vitdeploy.targets._tensorrt.log import BuildLog, logger_for
from vitdeploy.targets._tensorrt.profiler import LayerTimes, profiler_for
from vitdeploy.targets._tensorrt.record import EngineRecord, check_fits, load_record

Shapes = dict[str, tuple[int, ...]]

_PROFILED_RUNS, _MIN_PROFILED_S = 50, 0.5


@dataclass(frozen=True)
class _Buffer:
    """A tensor's memory: the host sees `array`, the GPU `device`; they are one where memory is shared."""

    host: int
    device: int
    array: Array
    shared: bool


class TensorRTSession(SequentialSession):
    """An opened engine with one execution context.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        plan: The engine's file.
        record: What it belongs to; whether it fits was checked.
        name: Of the session.
        cuda: The GPU; the session closes it.

    Raises:
        TargetUnavailable: TensorRT cannot open it after all.
    """

    def __init__(self, trt: ModuleType, plan: Path, record: EngineRecord, name: str, cuda: Cuda) -> None:
        self._trt, self._cuda, self._plan = trt, cuda, plan
        self._log = BuildLog()
        self._buffers: dict[str, _Buffer] = {}
        self._shapes: Shapes = {}
        self._graph = 0
        self._logger = logger_for(trt, self._log)  # has to live as long as the runtime
        self._runtime = trt.Runtime(self._logger)
        if record.version_compatible:
            self._runtime.engine_host_code_allowed = True  # such an engine carries a runtime of its own
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise TargetUnavailable(
                f"{plan} does not open: {self._log.last_errors()}",
                fix="Free some of the GPU's memory, or compile its bundle again on this machine.",
            )
        self._inputs, self._outputs = self._tensors()
        self._shared = cuda.integrated
        self._stream = cuda.stream()
        self._events = (cuda.event(), cuda.event())
        self.name = name
        self.threads: int | None = None
        self.device_ms: float | None = None
        """Time on the GPU of the last run, copies left out."""
        self.effective: Mapping[str, str] = {
            "engine": Api(trt).backend,
            "device": f"{cuda.name} ({cuda.sm})",
            "typing": record.typing,
            "memory": "shared" if self._shared else "copied",
        }

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name, copied to arrays of the caller's."""
        self._feed(feeds)
        self._cuda.record(self._events[0], self._stream)
        self._execute()
        self._cuda.record(self._events[1], self._stream)
        self._copy_out()
        self._cuda.synchronize(self._stream)
        self.device_ms = self._cuda.elapsed_ms(*self._events)
        return {name: self._buffers[name].array.copy() for name in self._outputs}

    def profile(self, feeds: Feeds) -> Counters | None:
        """Time by kernel, in a context of its own: what runs in a CUDA graph is not told apart."""
        self._feed(feeds)
        times = LayerTimes()
        profiler, context = profiler_for(self._trt, times), self._engine.create_execution_context()
        if context is None:
            raise MeasureError(
                f"{self._plan} does not open once more for its profile: {self._log.last_errors()}",
                fix="Free some of the GPU's memory, or leave --profile out.",
            )
        context.profiler = profiler
        for name in self._inputs:
            context.set_input_shape(name, feeds[name].shape)
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.device)

        def run() -> None:
            self._enqueue(context)
            self._cuda.synchronize(self._stream)

        run()  # the first one sets up
        times.ms.clear()
        runs, total_s = repeat(run, runs=_PROFILED_RUNS, seconds=_MIN_PROFILED_S)
        return times.counters(runs, total_s, stored_layers(self._plan.parent))

    def close(self) -> None:
        """Free the engine and all memory, in the order in which they depend on each other."""
        with suppress(CudaError):  # a context that is broken cannot be cleaned up, and the cause was told
            self._free()
            self._cuda.destroy(streams=(self._stream,), events=self._events)
        self._context = self._engine = self._runtime = None
        with suppress(CudaError):
            self._cuda.close()

    def _tensors(self) -> tuple[list[str], list[str]]:
        engine, modes = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == modes.INPUT]
        return inputs, [name for name in names if name not in inputs]

    def _feed(self, feeds: Feeds) -> None:
        """Bring the inputs to where the engine reads them."""
        self._cuda.activate()
        shapes: Shapes = {name: feeds[name].shape for name in self._inputs}
        if shapes != self._shapes:
            self._prepare(shapes, feeds)
        for name in self._inputs:
            np.copyto(self._buffers[name].array, feeds[name], casting="same_kind")
        self._copy_in()

    def _prepare(self, shapes: Shapes, feeds: Feeds) -> None:
        """Give every tensor its memory for these shapes, run once, and capture what that did."""
        self._free()
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise MeasureError(
                    f"{self._plan} does not take {name} of shape {list(shape)}",
                    fix="Feed a batch that it was built for: MIN to MAX of --batch.",
                )
        for name in (*self._inputs, *self._outputs):
            self._buffers[name] = self._allocated(name)
            self._context.set_tensor_address(name, self._buffers[name].device)
        for name in self._inputs:
            np.copyto(self._buffers[name].array, feeds[name], casting="same_kind")
        self._copy_in()
        self._enqueue(self._context)  # what TensorRT sets up on the first run must not be captured
        self._cuda.synchronize(self._stream)
        captured = self._captured()
        self.effective = {**self.effective, "cuda_graph": captured}
        self._shapes = shapes

    def _allocated(self, name: str) -> _Buffer:
        shape = tuple(self._context.get_tensor_shape(name))
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        host, raw = self._cuda.allocate_pinned(size)
        device = self._cuda.mapped(host) if self._shared else self._cuda.allocate(size)
        return _Buffer(host, device, raw.view(dtype).reshape(shape), self._shared)

    def _captured(self) -> str:
        """Capture one enqueue; without a graph every run enqueues kernel by kernel, which is slower and as right."""
        try:
            self._cuda.begin_capture(self._stream)
            try:
                self._enqueue(self._context)
            finally:
                self._graph = self._cuda.end_capture(self._stream)
        except (CudaError, MeasureError) as error:
            if self._graph:  # of an enqueue that failed half-way
                self._cuda.destroy(graphs=(self._graph,))
                self._graph = 0
            return f"no: {error.message}"
        return "yes"

    def _execute(self) -> None:
        if self._graph:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._enqueue(self._context)

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream):
            raise MeasureError(
                f"TensorRT does not run {self._plan}: {self._log.last_errors()}", fix="Compile its bundle again here."
            )

    def _copy_in(self) -> None:
        for name in self._inputs:
            buffer = self._buffers[name]
            if not buffer.shared:
                self._cuda.to_device(buffer.device, buffer.host, buffer.array.nbytes, self._stream)

    def _copy_out(self) -> None:
        for name in self._outputs:
            buffer = self._buffers[name]
            if not buffer.shared:
                self._cuda.to_host(buffer.host, buffer.device, buffer.array.nbytes, self._stream)

    def _free(self) -> None:
        if self._graph:
            self._cuda.destroy(graphs=(self._graph,))
            self._graph = 0
        for buffer in self._buffers.values():
            self._cuda.free_pinned(buffer.host)
            if not buffer.shared:
                self._cuda.free(buffer.device)
        self._buffers, self._shapes = {}, {}


def open_engine(trt: ModuleType, folder: Path, plan: str, name: str) -> TensorRTSession:
    """Open an engine on this machine's GPU.

    Raises:
        TargetUnavailable: there is no GPU, or the engine is of another TensorRT or another GPU; refused before
            TensorRT sees it.
        ArtifactError: nothing is known about the engine.
    """
    record = load_record(folder)
    here = gpu()
    check_fits(record, Api(trt), here, folder / plan)
    cuda = Cuda()
    try:
        session = TensorRTSession(trt, folder / plan, record, name, cuda)
    except BaseException:
        cuda.close()
        raise
    if (doubt := record.doubt(here)) is not None:
        session.effective = {**session.effective, "doubt": doubt}
    return session


def engine_information(trt: ModuleType, plan: bytes, shapes: Shapes | None = None) -> str:
    """The engine inspector's JSON about the layers; needs the GPU that the engine is for. Empty: it tells nothing.

    `shapes`: of inputs that vary. Types and formats depend on shapes, so without them it tells none of what varies.
    """
    runtime = trt.Runtime(logger_for(trt, BuildLog()))
    engine: Any = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    inspector = engine.create_engine_inspector()
    context = engine.create_execution_context() if shapes else None
    if context is not None:
        for name, shape in (shapes or {}).items():
            context.set_input_shape(name, shape)
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
