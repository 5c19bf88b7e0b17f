"""ONNX Runtime's package for GPUs, on a machine without one: the real ONNX Runtime computes on the CPU, and this module
reports what the GPU's providers report.

What it claims was read in ONNX Runtime's sources (main, 2026), in the package onnxruntime-gpu 1.31.1 and in the plug-in
onnxruntime-ep-nv-tensorrt-rtx 0.5.0, whose errors without a GPU are repeated word for word:

* A provider that does not load is a message on standard error, and the session opens on the CPU (seen in 1.31.1).
* The CUDA provider has no kernel for the operators in `ONLY_ON_CPU`; ONNX Runtime runs them on the CPU.
* With ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO set when the session opens, each MultiHeadAttention prints its kernel on
  standard output in each run. `choose_kernel` is multihead_attention.cc for sm75 and newer without a past.
* A plug-in must be registered, and its devices added to the session's options. It takes the graph as one node, and
  writes a trace of its layers, with the names that the real TensorRT-RTX gives them here, when the session is freed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import onnxruntime as real

CUDA, RTX, CPU = "CUDAExecutionProvider", "NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"
ONLY_ON_CPU = {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm"}
_LAYOUT = {"ReorderInput", "ReorderOutput"}  # of the CPU's blocked layout; no other provider has them
_CAST = "InsertedPrecisionFreeCast"  # around operators for which the CPU has no half kernel
_HALF = {"float": "float16"}
_MISSING = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
_FLASH, _EFFICIENT, _LEAST_FP32_TOKENS = 1, 2, 256


@dataclass
class Machine:
    """The state of the fake machine.

    Attributes:
        faults: "libraries" (CUDA is not installed), "no cuda" (the CPU package), "driver" (the plug-in does not load),
            "no devices" (it finds no GPU), "silent" (no attention kernel is printed), "no trace" (no layers are
            written).
        only_on_cpu: operators for which the providers have no kernel.
        registered: plug-ins by name.
        opened: the provider and options of each session.
    """

    faults: set[str] = field(default_factory=set)
    only_on_cpu: set[str] = field(default_factory=lambda: set(ONLY_ON_CPU))
    registered: dict[str, str] = field(default_factory=dict)
    opened: list[tuple[str, dict[str, str]]] = field(default_factory=list)


def choose_kernel(half: bool, tokens: int, keys: int, head: int, has_bias: bool, allowed: int) -> str:
    """Return the kernel that the CUDA provider takes for q, k and v of three linears."""
    flash, efficient = (not allowed or bool(allowed & bit) for bit in (_FLASH, _EFFICIENT))
    least = 0 if allowed or half else _LEAST_FP32_TOKENS
    if half and flash and not has_bias and head % 8 == 0 and head <= 256:
        return "FLASH_ATTENTION"
    aligned = not has_bias or tokens % (8 if half else 16) == 0
    if efficient and aligned and max(tokens, keys) >= least and head % (8 if half else 4) == 0:
        return "EFFICIENT_ATTENTION"
    return "MATH"


def module(machine: Machine) -> ModuleType:
    """Return a module onnxruntime for this machine."""
    fake = ModuleType("onnxruntime")
    fake.__dict__.update({name: getattr(real, name) for name in dir(real) if not name.startswith("__")})
    fake.__dict__.update(__version__=real.__version__, __file__=real.__file__, __spec__=real.__spec__)

    def list_providers() -> list[str]:
        return [CPU] if "no cuda" in machine.faults else ["TensorrtExecutionProvider", CUDA, CPU]

    def register(name: str, path: str) -> None:
        if not Path(path).is_file() or "driver" in machine.faults:
            detail = f"{path} with error: libcuda.so.1: cannot open shared object file: No such file or directory"
            raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : Failed to load library {detail}")
        if name in machine.registered:
            raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : library is already registered under {name}.")
        machine.registered[name] = path

    def devices() -> list[Any]:
        gpus = [] if "no devices" in machine.faults else list(machine.registered)
        return [SimpleNamespace(ep_name=name) for name in (CPU, *gpus)]

    class Options(real.SessionOptions):  # type: ignore[misc]
        devices: tuple[Any, ...] = ()

        def add_provider_for_devices(self, added: list[Any], options: dict[str, str]) -> None:
            assert added, "ONNX Runtime refuses an empty list"
            assert all(device.ep_name == added[0].ep_name for device in added)
            self.devices, self.ep_options = tuple(added), options

    class Session:
        def __init__(self, model: Any, options: Any = None, providers: Any = None, enable_fallback: int = 1) -> None:
            name, given = CPU, {}
            if options is not None and getattr(options, "devices", ()):
                assert providers is None, "the providers given here would replace those of the options"
                name, given = options.devices[0].ep_name, options.ep_options
            elif providers:
                first = providers[0]
                name, given = first if isinstance(first, tuple) else (first, {})
            if name == CUDA and {"libraries", "no cuda"} & machine.faults:
                if "libraries" in machine.faults:
                    os.write(2, f"[E:onnxruntime] Failed to load library libx.so with error: {_MISSING}\n".encode())
                    os.write(2, b"[W] Require cuDNN 9.* and CUDA 13.*. Please install all dependencies\n")
                name = CPU
            assert all(isinstance(value, str) for value in given.values()), "ONNX Runtime takes texts only"
            machine.opened.append((name, dict(given)))
            self._name, self._given, self._model = name, given, model
            self._loud = os.environ.get("ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO") == "1"
            self._real = real.InferenceSession(model, options, providers=[CPU])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def get_providers(self) -> list[str]:
            return [CPU] if self._name == CPU else [self._name, CPU]

        def disable_fallback(self) -> None:
            pass

        def run(self, outputs: Any, feeds: Any) -> Any:
            if self._name == CUDA and self._loud and "silent" not in machine.faults:
                for line in _list_choices(self._model, feeds, int(self._given.get("sdpa_kernel", "0"))):
                    os.write(1, f"\x1b[36m{line}\x1b[0m\n".encode())
            return self._real.run(outputs, feeds)

        def end_profiling(self) -> str:
            file = str(self._real.end_profiling())
            if self._name != CPU:
                events = _retell(json.loads(Path(file).read_text()), self._name, self._model, machine.only_on_cpu)
                Path(file).write_text(json.dumps(events))
            return file

        def __del__(self) -> None:
            if self.__dict__.get("_given", {}).get("nv_enable_profiling") == "1" and "no trace" not in machine.faults:
                _write_trace(Path(self._model), Path(self._given["nv_profiling_output_file"]))

    fake.__dict__.update(
        get_available_providers=list_providers,
        preload_dlls=lambda: print("Failed to load /usr/lib/libcudart.so.13"),
        register_execution_provider_library=register,
        get_ep_devices=devices,
        SessionOptions=Options,
        InferenceSession=Session,
    )
    return fake


def _halves(model: str | bytes) -> bool:
    graph = (onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)).graph
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)


def _list_choices(model: str, feeds: Any, allowed: int) -> list[str]:
    """Return what each MultiHeadAttention prints, from the shapes of a run on the CPU."""
    options = real.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, f"{model}.choices"
    session = real.InferenceSession(model, options, providers=[CPU])
    session.run(None, dict(feeds))
    file = Path(session.end_profiling())
    events = json.loads(file.read_text())
    file.unlink()
    half = _halves(model)
    heads = {n.name: a.i for n in onnx.load(model).graph.node for a in n.attribute if a.name == "num_heads"}
    lines = []
    for event in events:
        arguments = event.get("args", {})
        if arguments.get("op_name") == "MultiHeadAttention":
            name = event["name"].removesuffix("_kernel_time")
            shapes = [next(iter(shape.values())) for shape in arguments["input_type_shape"]]
            (_, tokens, width), keys = shapes[0], shapes[1][-2]
            kernel = choose_kernel(half, tokens, keys, width // heads[name], len(shapes) > 3, allowed)
            lines.append(
                f"Operator=MultiHeadAttention Node={name} DataType={'fp16' if half else 'fp32'} SdpaKernel={kernel}"
            )
    return lines


def _retell(events: list[Any], provider: str, model: str, only_on_cpu: set[str]) -> list[Any]:
    """Return a CPU's profile as that of a GPU's provider."""
    half = _halves(model)
    told, fused = [], False
    for event in events:
        arguments = event.get("args", {})
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            told.append(event)
            continue
        is_cast = _CAST in event["name"] and arguments["op_name"] == "Cast"
        if is_cast or arguments["op_name"] in _LAYOUT:
            continue
        event = {**event, "name": event["name"].removeprefix(f"{_CAST}_")}
        if arguments["op_name"] in only_on_cpu:
            told.append(event)
        elif provider == RTX and fused:
            continue
        elif provider == RTX:
            fused = True
            name = f"{RTX}_13_{0}_0"
            told.append(
                {**event, "name": f"{name}_kernel_time", "args": {**arguments, "op_name": name, "provider": RTX}}
            )
        else:
            outputs = arguments.get("output_type_shape") or [{}]
            if half and arguments["op_name"] != "Cast":
                outputs = [{_HALF.get(kind, kind): shape for kind, shape in each.items()} for each in outputs]
            told.append({**event, "args": {**arguments, "provider": provider, "output_type_shape": outputs}})
    return told


def _write_trace(graph: Path, trace: Path) -> None:
    """Write the layers that TensorRT-RTX makes of a graph, in the form of the plug-in's profiler."""
    import tensorrt_rtx as trt

    from vitdeploy.targets._tensorrt.build import BuildOptions, build_engine
    from vitdeploy.targets._tensorrt.plan import parse_plan

    engine = build_engine(trt, graph, BuildOptions(compute_capabilities=("sm86",)))
    events: list[Any] = [{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "TensorRT-RTX"}}]
    for layer in parse_plan(engine.layer_plan.splitlines()):
        nodes = "".join(f"[ONNX Layer: {node}]" for node in layer.onnx_nodes)
        event = {"name": layer.name, "ph": "X", "cat": "nv::trt::layer", "ts": 0, "dur": 1.0, "tid": 1}
        events.append({**event, "args": {"onnx_nodes": nodes}})
    trace.write_text(json.dumps(events))
