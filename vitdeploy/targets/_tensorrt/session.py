"""Run an engine on this machine's GPU, as a CUDA graph where TensorRT allows it.

On a Jetson, CPU and GPU share one memory: inputs and outputs are pinned and mapped, and nothing is copied. On a
discrete GPU they are copied through pinned memory. The CUDA graph and the GPU's clock cover only the engine's own work,
so that the time on the device is known separately from the time that a caller waits.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vitdeploy.errors import MeasureError, TargetUnavailable
from vitdeploy.session import Array, Counters, Feeds, SequentialSession, check_output_names, closed_error, repeat
from vitdeploy.targets import Compiled
from vitdeploy.targets._tensorrt.api import Api
from vitdeploy.targets._tensorrt.cuda import Cuda, CudaError
from vitdeploy.targets._tensorrt.gpu import find_gpu
from vitdeploy.targets._tensorrt.layers import read_layers
from vitdeploy.targets._tensorrt.log import BuildLog, make_logger
from vitdeploy.targets._tensorrt.profiler import LayerTimes, make_profiler
from vitdeploy.targets._tensorrt.record import EngineRecord, check_record, load_record

Shapes = dict[str, tuple[int, ...]]

_PROFILED_RUNS, _MIN_PROFILED_S = 50, 0.5


@dataclass(frozen=True)
class _Buffer:
    """The memory of a tensor.

    Attributes:
        host: address on the host.
        device: address on the GPU.
        array: the host memory as an array.
        shared: whether host and GPU address the same memory.
    """

    host: int
    device: int
    array: Array
    shared: bool


class TensorRTSession(SequentialSession):
    """An opened engine with one execution context.

    A context, its buffers and its CUDA graph serve one run at a time, so threads take turns. One engine fills the GPU:
    a second context would cost its memory again and gain little.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        plan: the file of the engine.
        record: its record, which fits this machine.
        name: of the session.
        cuda: the GPU. The session closes it.
        outputs: the names of the outputs, in the model's order; empty: the engine's names.

    Raises:
        TargetUnavailable: TensorRT cannot open it.
    """

    def __init__(
        self,
        trt: ModuleType,
        plan: Path,
        record: EngineRecord,
        name: str,
        cuda: Cuda,
        outputs: Sequence[str] = (),
    ) -> None:
        self._trt, self._cuda, self._plan = trt, cuda, plan
        self._turn = threading.Lock()
        self._log = BuildLog()
        self._buffers: dict[str, _Buffer] = {}
        self._shapes: Shapes = {}
        self._graph = 0
        self._logger = make_logger(trt, self._log)  # it must live as long as the runtime
        self._runtime = trt.Runtime(self._logger)
        if record.version_compatible:
            self._runtime.engine_host_code_allowed = True  # such an engine contains a runtime of its own
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise TargetUnavailable(
                f"{plan} does not open: {self._log.last_errors()}",
                fix="Free some of the GPU's memory, or compile its bundle again on this machine.",
            )
        self._inputs, engine_names = self._list_tensors()
        self._outputs = _name_outputs(engine_names, outputs)
        """name -> name in the engine"""
        self._shared = cuda.integrated
        self._stream = cuda.create_stream()
        self._events = (cuda.create_event(), cuda.create_event())
        self.name = name
        self.threads: int | None = None
        self.device_ms: float | None = None
        """Time on the GPU of the last run, without copies."""
        self.effective: Mapping[str, str] = {
            "engine": Api(trt).backend,
            "device": f"{cuda.name} ({cuda.sm})",
            "typing": record.typing,
            "memory": "shared" if self._shared else "copied",
        }

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return the outputs by name, as copies that belong to the caller.

        Raises:
            UsageError: the session is closed.
        """
        with self._turn:
            self._feed(feeds)
            self._cuda.record(self._events[0], self._stream)
            self._execute()
            self._cuda.record(self._events[1], self._stream)
            self._copy_out()
            self._cuda.synchronize(self._stream)
            self.device_ms = self._cuda.elapsed_ms(*self._events)
            return {name: self._buffers[engine].array.copy() for name, engine in self._outputs.items()}

    def profile(self, feeds: Feeds) -> Counters | None:
        """Measure the time per kernel, in a second context without a CUDA graph."""
        with self._turn:
            return self._profile(feeds)

    def _profile(self, feeds: Feeds) -> Counters:
        self._feed(feeds)
        times = LayerTimes()
        profiler, context = make_profiler(self._trt, times), self._engine.create_execution_context()
        if context is None:
            raise MeasureError(
                f"{self._plan} does not open a second time for its profile: {self._log.last_errors()}",
                fix="Free some of the GPU's memory, or leave out --profile.",
            )
        context.profiler = profiler
        for name in self._inputs:
            context.set_input_shape(name, feeds[name].shape)
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.device)

        def run() -> None:
            self._enqueue(context)
            self._cuda.synchronize(self._stream)

        run()  # the first run sets up
        times.ms.clear()
        runs, total_s = repeat(run, runs=_PROFILED_RUNS, seconds=_MIN_PROFILED_S)
        return times.counters(runs, total_s, read_layers(self._plan.parent))

    def close(self) -> None:
        """Free the engine and all memory, in the order of their dependencies, once no thread runs it."""
        with self._turn:
            if self._context is None:
                return
            with suppress(CudaError):  # a broken context cannot be cleaned up, and its cause was already raised
                self._cuda.activate()  # this may be another thread than the one that opened it
                self._free()
                self._cuda.destroy(streams=(self._stream,), events=self._events)
            self._context = self._engine = self._runtime = None
            with suppress(CudaError):
                self._cuda.close()

    def _list_tensors(self) -> tuple[list[str], list[str]]:
        """Return the names of the inputs and of the outputs."""
        engine, modes = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == modes.INPUT]
        return inputs, [name for name in names if name not in inputs]

    def _feed(self, feeds: Feeds) -> None:
        """Copy the inputs to the memory from which the engine reads them."""
        if self._context is None:
            raise closed_error(self.name)
        self._cuda.activate()
        shapes: Shapes = {name: feeds[name].shape for name in self._inputs}
        if shapes != self._shapes:
            self._prepare(shapes, feeds)
        for name in self._inputs:
            np.copyto(self._buffers[name].array, feeds[name], casting="same_kind")
        self._copy_in()

    def _prepare(self, shapes: Shapes, feeds: Feeds) -> None:
        """Allocate the memory of all tensors for these shapes, run once, and capture a CUDA graph."""
        self._free()
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise MeasureError(
                    f"{self._plan} does not take {name} of shape {list(shape)}",
                    fix="Use sizes for which it was built: MIN to MAX of --batch and of --image-size.",
                )
        for name in (*self._inputs, *self._outputs.values()):
            self._buffers[name] = self._allocate(name)
            self._context.set_tensor_address(name, self._buffers[name].device)
        for name in self._inputs:
            np.copyto(self._buffers[name].array, feeds[name], casting="same_kind")
        self._copy_in()
        self._enqueue(self._context)  # TensorRT's set-up on the first run must not be captured
        self._cuda.synchronize(self._stream)
        self.effective = {**self.effective, "cuda_graph": self._capture()}
        self._shapes = shapes

    def _allocate(self, name: str) -> _Buffer:
        shape = tuple(self._context.get_tensor_shape(name))
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        host, raw = self._cuda.allocate_pinned(size)
        device = self._cuda.device_address(host) if self._shared else self._cuda.allocate(size)
        return _Buffer(host, device, raw.view(dtype).reshape(shape), self._shared)

    def _capture(self) -> str:
        """Capture a CUDA graph of one run; return "yes", or "no" with the reason.

        Without a graph every run enqueues kernel by kernel. It is slower, with the same results.
        """
        try:
            self._cuda.begin_capture(self._stream)
            try:
                self._enqueue(self._context)
            finally:
                self._graph = self._cuda.end_capture(self._stream)
        except (CudaError, MeasureError) as error:
            if self._graph:  # a part of a run that failed
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
                f"TensorRT does not run {self._plan}: {self._log.last_errors()}",
                fix="Compile its bundle again on this machine.",
            )

    def _copy_in(self) -> None:
        for name in self._inputs:
            buffer = self._buffers[name]
            if not buffer.shared:
                self._cuda.copy_to_device(buffer.device, buffer.host, buffer.array.nbytes, self._stream)

    def _copy_out(self) -> None:
        for name in self._outputs.values():
            buffer = self._buffers[name]
            if not buffer.shared:
                self._cuda.copy_to_host(buffer.host, buffer.device, buffer.array.nbytes, self._stream)

    def _free(self) -> None:
        if self._graph:
            self._cuda.destroy(graphs=(self._graph,))
            self._graph = 0
        for buffer in self._buffers.values():
            self._cuda.free_pinned(buffer.host)
            if not buffer.shared:
                self._cuda.free(buffer.device)
        self._buffers, self._shapes = {}, {}


def _name_outputs(engine_names: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Map the artifact's names of outputs, in its order, to the engine's: by name, or by index if they differ."""
    named = check_output_names(engine_names, names)
    return (
        {name: name for name in named}
        if set(named) == set(engine_names)
        else dict(zip(named, engine_names, strict=True))
    )


def open_engine(trt: ModuleType, compiled: Compiled, name: str) -> TensorRTSession:
    """Open an engine on this machine's GPU.

    Raises:
        TargetUnavailable: there is no GPU, or the engine was built for another TensorRT or GPU. It is refused before
            TensorRT reads it.
        ArtifactError: the engine has no readable record.
    """
    folder, plan = compiled.folder, compiled.runs
    record = load_record(folder)
    gpu = find_gpu()
    check_record(record, Api(trt), gpu, folder / plan)
    cuda = Cuda()
    try:
        session = TensorRTSession(trt, folder / plan, record, name, cuda, compiled.output_names)
    except BaseException:
        cuda.close()
        raise
    if (doubt := record.find_doubt(gpu)) is not None:
        session.effective = {**session.effective, "doubt": doubt}
    return session


def inspect_engine(trt: ModuleType, plan: bytes, shapes: Shapes | None = None) -> str:
    """Return the engine inspector's JSON about the layers; empty if the engine cannot be opened.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        plan: an engine for this machine's GPU.
        shapes: of inputs that vary. Types and formats depend on them, and are unknown without them.
    """
    runtime = trt.Runtime(make_logger(trt, BuildLog()))
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
