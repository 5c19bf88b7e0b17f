"""A model compiled by OpenVINO: requested configuration, effective configuration, runs, streams and counters."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitdeploy.environment import available_cores
from vitdeploy.errors import CompileError
from vitdeploy.graph.dialect import FLOAT32, Numbers
from vitdeploy.session import Array, Closing, Counters, Feeds, OperatorTime, check_output_names, closed_error, repeat

_PROFILED_RUNS = 50  # the counters' means include the first run, which allocates
_MIN_PROFILED_S = 1.0

_COMPUTE = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""OpenVINO's names of the types to compute in. In a quantized model, for everything that is not quantized."""
_GROUP = 32
"""Activations that share a scale when OpenVINO rounds them to int8 at run time: OpenVINO's default."""

# Properties of a compiled model, by their names in the evidence. A device does not have all of them.
_PROPERTIES = {
    "devices": "EXECUTION_DEVICES",
    "hint": "PERFORMANCE_HINT",
    "streams": "NUM_STREAMS",
    "threads": "INFERENCE_NUM_THREADS",
    "cpu_pinning": "ENABLE_CPU_PINNING",
    "core_type": "SCHEDULING_CORE_TYPE",
    "hyper_threading": "ENABLE_HYPER_THREADING",
    "dynamic_quantization_group": "DYNAMIC_QUANTIZATION_GROUP_SIZE",
}


@dataclass(frozen=True)
class Engine:
    """The requested configuration of OpenVINO. `streams` is the number of parallel inferences; None: by the hint."""

    device: str = "CPU"
    threads: int | None = None
    streams: int | None = None
    hint: str = "latency"
    numbers: Numbers = FLOAT32

    def config(self) -> dict[str, Any]:
        """Return the properties for `compile_model`.

        By default OpenVINO computes in bfloat16 on CPUs that have it, and rounds the activations of compressed linears
        to int8. Here both happen only on request.
        """
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": self.hint.upper(),
            "INFERENCE_PRECISION_HINT": compute_type(self.numbers),
        }
        cpu = {
            "INFERENCE_NUM_THREADS": self.threads or available_cores(),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if self.numbers.dynamic else 0,
        }
        if self.device.startswith("CPU"):
            config |= cpu
        elif self.device.startswith("AUTO"):  # it takes properties of a device only under that device's name
            config["DEVICE_PROPERTIES"] = {"CPU": cpu}
        if self.streams is not None:
            config["NUM_STREAMS"] = self.streams
        return config

    def compile(self, model: Any, **properties: Any) -> Any:
        """Compile a model: a file, or an `ov.Model`. `properties` are set in addition.

        Raises:
            CompileError: OpenVINO refuses the model, or would compute in another type. OpenVINO does not report that.
        """
        import openvino as ov

        try:
            compiled = ov.Core().compile_model(model, self.device, self.config() | properties)
        except RuntimeError as error:
            raise compile_error(error) from error
        requested, effective = compute_type(self.numbers), precision_hint(compiled)
        if requested != "f32" and effective != requested:
            raise CompileError(
                f"OpenVINO computes in {effective} on this {self.device}, although {requested} was requested",
                fix="Use --precision fp32 here, or a CPU with avx512_bf16 or amx_bf16.",
            )
        return compiled


class OpenVINOSession(Closing):
    """A compiled model and its idle inference requests; `run_all` uses as many as there are streams.

    A request serves one thread at a time: its inputs and outputs are its own. So each run takes an idle request, or
    makes one, and puts it back when the outputs are copied. There are as many as threads ever ran at the same time; a
    request holds the memory of inputs and outputs only.
    """

    device_ms: float | None = None

    def __init__(
        self,
        source: Any,
        engine: Engine,
        *,
        name: str = "",
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        also: Mapping[str, str] | None = None,
    ) -> None:
        """Compile `source`, a file or an `ov.Model`.

        OpenVINO's transformations may rename inputs and outputs, but they keep the order. So both are found by index.

        Args:
            source: the model.
            engine: the requested configuration.
            name: of the session.
            inputs: the names of the first inputs, in the model's order; others keep OpenVINO's names.
            outputs: the names of all outputs, in the model's order; empty: OpenVINO's names.
            also: further names by which outputs are returned, with the output's name.

        Raises:
            CompileError: OpenVINO refuses the model, or it has another number of outputs.
        """
        model = engine.compile(source)
        self._input_index = {given: index for index, given in enumerate(inputs)}
        self._names = check_output_names([output.get_any_name() for output in model.outputs], outputs)
        self._also = also or {}
        self._source, self._engine = source, engine
        self._model: Any = model
        self._idle: deque[Any] = deque([model.create_infer_request()])  # append() and pop() are atomic
        self._queue: Any = None
        self._queue_turn = threading.Lock()
        self.name = name or f"openvino-{engine.numbers.precision}"
        self.threads: int | None = read_property(model, "INFERENCE_NUM_THREADS") or engine.threads
        properties = {key: _format_property(read_property(model, name)) for key, name in _PROPERTIES.items()}
        self.effective: Mapping[str, str] = {
            "engine": version(),
            "device": engine.device,
            **{key: value for key, value in properties.items() if value},
            "inference_precision": precision_hint(model),
        }

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return the outputs by name, as copies that belong to the caller.

        Raises:
            UsageError: the session is closed.
        """
        model = self._open_model()  # it lives until this run ends, even if another thread closes the session
        try:
            request = self._idle.pop()
        except IndexError:
            request = model.create_infer_request()
        result = request.infer(self._by_index(feeds), share_inputs=True)
        outputs = {name: result[index] for index, name in enumerate(self._names)}
        self._idle.append(request)  # one that fails is not put back
        if self._model is None:
            self._idle.clear()
        return outputs | {name: outputs[output] for name, output in self._also.items()}

    def run_all(self, feeds: Sequence[Feeds]) -> None:
        """Run all of them, as many at a time as the model has inference requests. Threads take turns.

        Raises:
            UsageError: the session is closed.
        """
        import openvino as ov

        with self._queue_turn:
            model = self._open_model()
            if self._queue is None:
                self._queue = ov.AsyncInferQueue(model)
            for inputs in feeds:
                self._queue.start_async(self._by_index(inputs), share_inputs=True)
            self._queue.wait_all()

    def profile(self, feeds: Feeds) -> Counters | None:
        """Measure the time per node of the runtime model, in a second compilation with counters."""
        self._open_model()
        model = self._engine.compile(self._source, PERF_COUNT=True)
        return measure_operators(model, self._by_index(feeds))

    def close(self) -> None:
        """Free the requests and with them the model, once no thread runs it."""
        self._model = None
        self._idle.clear()
        with self._queue_turn:
            self._queue = None

    def _open_model(self) -> Any:
        model = self._model
        if model is None:
            raise closed_error(self.name)
        return model

    def _by_index(self, feeds: Feeds) -> dict[int | str, Array]:
        return {self._input_index.get(name, name): value for name, value in feeds.items()}


def measure_operators(model: Any, inputs: Mapping[Any, Array]) -> Counters:
    """Run a compiled model again and again; return the mean time of each node of its runtime model.

    Args:
        model: compiled with `PERF_COUNT`.
        inputs: its inputs, by index or name.
    """
    nodes = {op.get_friendly_name(): _original_nodes(op) for op in model.get_runtime_model().get_ordered_ops()}
    request = model.create_infer_request()
    request.infer(inputs, share_inputs=True)  # it allocates, which no operator counts
    runs, total_s = repeat(
        lambda: request.infer(inputs, share_inputs=True), runs=_PROFILED_RUNS, seconds=_MIN_PROFILED_S
    )
    operators = tuple(  # the counters are means over all runs since the model was compiled
        OperatorTime(
            name=info.node_name,
            kind=f"{info.node_type} {info.exec_type}",
            nodes=nodes.get(info.node_name, (info.node_name,)),
            ms=info.real_time.total_seconds() * 1e3,
        )
        for info in request.profiling_info
        if info.real_time.total_seconds() > 0
    )
    return Counters(runs, total_s * 1e3 / runs, operators)


def compute_type(numbers: Numbers) -> str:
    """Return the requested type of everything that is not quantized, as OpenVINO names it."""
    return _COMPUTE[numbers.rest]


def version() -> str:
    """Return name and version, without the build's commit and branch."""
    import openvino as ov

    return f"openvino {ov.__version__.partition('-')[0]}"


def compile_error(error: Exception) -> CompileError:
    """Return a CompileError with the last line of OpenVINO's message."""
    reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    return CompileError(
        f"OpenVINO refuses the graph: {reason.strip()[:200]}", fix="Try another --precision or --device."
    )


def read_property(model: Any, name: str) -> Any:
    """Return a property of a compiled model; None if the device has no such property."""
    try:
        return model.get_property(name)
    except RuntimeError:
        return None


def precision_hint(model: Any) -> str:
    """Return the type in which the engine computes everything that is not quantized, such as `f32`."""
    hint = read_property(model, "INFERENCE_PRECISION_HINT")
    return "unknown" if hint is None else str(hint.get_type_name() if hasattr(hint, "get_type_name") else hint)


def _format_property(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(getattr(value, "name", value))


def _original_nodes(op: Any) -> tuple[str, ...]:
    """Return the ONNX nodes from which a node of the runtime model was made."""
    info = op.get_rt_info()
    if "originalLayersNames" not in info:
        return (op.get_friendly_name(),)
    return tuple(name for name in str(info["originalLayersNames"].astype(str)).split(",") if name)
