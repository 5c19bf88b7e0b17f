"""A model compiled by OpenVINO: its configuration as asked for and as read back, runs, streams and counters."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitdeploy.environment import available_cores
from vitdeploy.errors import CompileError
from vitdeploy.graph.dialect import FLOAT32, Numbers
from vitdeploy.session import Array, Closing, Counters, Feeds, OperatorTime, repeat

PROFILED_RUNS = 50  # the first one stays in the counters' means, whatever it allocates
_MIN_PROFILED_S = 1.0

_COMPUTE = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""OpenVINO's names of the types to compute in. Of a quantized model, in what is not quantized."""
_GROUP = 32
"""Of activations that share a scale when OpenVINO rounds them to int8 at run time: its own default."""

# What is told of a compiled model, by the name it has in evidence. A device leaves out what it does not know.
_READ_BACK = {
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
    """How OpenVINO is asked to run a model. `streams`: inferences at a time; None: as the hint says."""

    device: str = "CPU"
    threads: int | None = None
    streams: int | None = None
    hint: str = "latency"
    numbers: Numbers = FLOAT32

    def config(self) -> dict[str, Any]:
        """Properties for `compile_model`.

        Left alone, OpenVINO computes in bfloat16 on CPUs that have it, and rounds the activations of compressed
        linears to int8: nobody asked for either.
        """
        wanted = compute_type(self.numbers)
        config: dict[str, Any] = {"PERFORMANCE_HINT": self.hint.upper(), "INFERENCE_PRECISION_HINT": wanted}
        cpu = {
            "INFERENCE_NUM_THREADS": self.threads or available_cores(),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if self.numbers.dynamic else 0,
        }
        if self.device.startswith("CPU"):
            config |= cpu
        elif self.device.startswith("AUTO"):  # takes properties of a device only under that device's name
            config["DEVICE_PROPERTIES"] = {"CPU": cpu}
        if self.streams is not None:
            config["NUM_STREAMS"] = self.streams
        return config

    def compile(self, model: Any, **more: Any) -> Any:
        """Compile a model: a file, or what was read from one.

        Raises:
            CompileError: OpenVINO refuses it, or would compute in another type, which it does not say itself.
        """
        import openvino as ov

        try:
            compiled = ov.Core().compile_model(model, self.device, self.config() | more)
        except RuntimeError as error:
            raise refused(error) from error
        wanted, effective = compute_type(self.numbers), precision_hint(compiled)
        if wanted != "f32" and effective != wanted:
            raise CompileError(
                f"asked for {wanted}, OpenVINO computes in {effective} on this {self.device}",
                fix="Use --precision fp32 here, or a CPU with avx512_bf16 or amx_bf16.",
            )
        return compiled


class OpenVINOSession(Closing):
    """A compiled model with one inference request; `run_all` uses as many as there are streams."""

    device_ms: float | None = None

    def __init__(self, source: Any, engine: Engine, *, name: str = "", wanted: Collection[str] = ()) -> None:
        """`source` is a file, or what was read from one; tensors `wanted` go by that name, whatever else they have."""
        model = engine.compile(source)
        self._source, self._engine = source, engine
        self._model: Any = model
        self._request: Any = model.create_infer_request()
        self._queue: Any = None
        self._names = [tuple(output.get_names() & set(wanted)) or (output.get_any_name(),) for output in model.outputs]
        self.name = name or f"openvino-{engine.numbers.precision}"
        self.threads: int | None = read_property(model, "INFERENCE_NUM_THREADS") or engine.threads
        read = {key: _told(read_property(model, name)) for key, name in _READ_BACK.items()}
        self.effective: Mapping[str, str] = {
            "engine": version(),
            "device": engine.device,
            **{key: value for key, value in read.items() if value},
            "inference_precision": precision_hint(model),
        }

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name, copied to arrays of the caller's."""
        result = self._request.infer(dict(feeds), share_inputs=True)
        return {name: result[index] for index, names in enumerate(self._names) for name in names}

    def run_all(self, feeds: Sequence[Feeds]) -> None:
        """Answer all, as many at a time as the model has requests in flight."""
        import openvino as ov

        if self._queue is None:
            self._queue = ov.AsyncInferQueue(self._model)
        for one in feeds:
            self._queue.start_async(dict(one), share_inputs=True)
        self._queue.wait_all()

    def profile(self, feeds: Feeds) -> Counters | None:
        """Time by node of the runtime model, from a second compilation with counters on."""
        model = self._engine.compile(self._source, PERF_COUNT=True)
        made_from = {op.get_friendly_name(): _made_from(op) for op in model.get_runtime_model().get_ordered_ops()}
        request, inputs = model.create_infer_request(), dict(feeds)
        request.infer(inputs, share_inputs=True)  # it allocates, which no operator counts
        runs, total_s = repeat(
            lambda: request.infer(inputs, share_inputs=True), runs=PROFILED_RUNS, seconds=_MIN_PROFILED_S
        )
        operators = tuple(  # the counters are means over all runs since the model was compiled
            OperatorTime(
                name=info.node_name,
                kind=f"{info.node_type} {info.exec_type}",
                nodes=made_from.get(info.node_name, (info.node_name,)),
                ms=info.real_time.total_seconds() * 1e3,
            )
            for info in request.profiling_info
            if info.real_time.total_seconds() > 0
        )
        return Counters(runs, total_s * 1e3 / runs, operators)

    def close(self) -> None:
        """Free the request and with it the model."""
        self._queue = self._request = self._model = None


def compute_type(numbers: Numbers) -> str:
    """Return the type that is asked for where nothing is quantized."""
    return _COMPUTE[numbers.rest]


def version() -> str:
    """Name and version, without the build's commit and branch."""
    import openvino as ov

    return f"openvino {ov.__version__.partition('-')[0]}"


def refused(error: Exception) -> CompileError:
    """OpenVINO's last word, as an error of ours."""
    reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    return CompileError(
        f"OpenVINO refuses the graph: {reason.strip()[:200]}", fix="Try another --precision or --device."
    )


def read_property(model: Any, name: str) -> Any:
    """A property of a compiled model; None when the device has no such property."""
    try:
        return model.get_property(name)
    except RuntimeError:
        return None


def precision_hint(model: Any) -> str:
    """The type the engine computes in where nothing is quantized, such as `f32`."""
    hint = read_property(model, "INFERENCE_PRECISION_HINT")
    return "unknown" if hint is None else str(hint.get_type_name() if hasattr(hint, "get_type_name") else hint)


def _told(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(getattr(value, "name", value))


def _made_from(op: Any) -> tuple[str, ...]:
    """The nodes that a node of the runtime model was made from."""
    info = op.get_rt_info()
    return (
        tuple(n for n in str(info["originalLayersNames"].astype(str)).split(",") if n)
        if ("originalLayersNames" in info)
        else (op.get_friendly_name(),)
    )
