"""Running a fake engine: its ONNX graph, computed by ONNX Runtime on the addresses that the device may see."""

from __future__ import annotations

import ctypes
import json
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from tests.fakes.guarded import MAGIC, NUMPY, Guarded, heard, say, shape_of, untold, want

FAKE_LAYER_MS = 0.01
TYPES = {
    onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF", onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.INT64: "INT64", onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.BFLOAT16: "BF16", onnx.TensorProto.BOOL: "BOOL", onnx.TensorProto.INT8: "INT8",
}  # fmt: skip


class Runtime(Guarded):
    def __init__(self, logger: Any) -> None:
        heard(logger)
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        header, _, graph = plan.removeprefix(MAGIC).partition(b"\n")
        facts = json.loads(header)
        portable = "VERSION_COMPATIBLE" in facts["flags"] and self.engine_host_code_allowed
        if facts["version"] != self._trt.__version__ and not portable:
            said = "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (stdVersionRead == "
            say(self._logger, "ERROR", said + "kSERIALIZATION_VERSION failed. Version tag does not match.)")
            return None
        return self._trt.ICudaEngine(facts, graph)


class Engine(Guarded):
    def __init__(self, facts: dict[str, Any], graph: bytes) -> None:
        self._facts = facts
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        model = onnx.load_from_string(graph)
        self._values = {v.name: v for v in (*model.graph.input, *model.graph.output)}
        self._inputs = [v.name for v in model.graph.input]

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    def get_tensor_name(self, index: int) -> str:
        return list(self._values)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode["INPUT" if name in self._inputs else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType[TYPES[self._values[name].type.tensor_type.elem_type]]

    def create_execution_context(self) -> Any:
        return None if "context" in self._trt.faults else self._trt.IExecutionContext(self)

    def create_engine_inspector(self) -> Any:
        return self._trt.EngineInspector(self)


class Context(Guarded):
    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._shapes = {name: shape_of(value) for name, value in engine._values.items()}
        self._addresses: dict[str, int] = {}
        self.profiler: Any = None
        self.enqueue_emits_profile = True
        self._work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._compute)

    def set_input_shape(self, name: str, shape: Any) -> bool:
        static, profile = shape_of(self._engine._values[name]), self._engine._facts["profile"].get(name)
        fits = len(shape) == len(static) and all(s in (-1, given) for s, given in zip(static, shape, strict=True))
        if profile is not None:
            fits &= all(low <= given <= high for low, given, high in zip(profile[0], shape, profile[2], strict=True))
        if fits:
            batch = shape[0]
            every = self._engine._values.items()
            self._shapes = {n: tuple(batch if s == -1 else s for s in shape_of(v)) for n, v in every}
            self._shapes[name] = tuple(shape)
        return bool(fits)

    def get_tensor_shape(self, name: str) -> Any:
        return self._shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        enqueue = self._trt.cuda.fakeEnqueue
        enqueue.argtypes = (ctypes.c_void_p, type(self._work))
        accepted = bool(enqueue(stream_handle, self._work) == 0)
        if accepted and self.profiler is not None and self.enqueue_emits_profile:
            heard(self.profiler)
            for layer in self._engine._facts["layers"]:  # each layer once for each run, by the name in the plan
                type(self.profiler).report_layer_time(self.profiler, layer["name"], FAKE_LAYER_MS)
        return accepted

    def _compute(self, _: Any) -> None:
        inputs = {name: self._array(name) for name in self._engine._inputs}
        names = [name for name in self._engine._values if name not in inputs]
        for name, value in zip(names, self._engine._session.run(names, inputs), strict=True):
            self._array(name)[...] = value

    def _array(self, name: str) -> Any:
        dtype = np.dtype(NUMPY[self._engine.get_tensor_dtype(name).name])
        size = int(np.prod(self._shapes[name])) * dtype.itemsize
        visible = self._trt.cuda.fakeVisible
        visible.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        if not visible(self._addresses[name], size):
            raise MemoryError(f"illegal memory access: {name} is not where the device can see it")
        raw = (ctypes.c_uint8 * size).from_address(self._addresses[name])
        return np.frombuffer(raw, dtype).reshape(self._shapes[name])


class Inspector(Guarded):
    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.execution_context = None

    def get_engine_information(self, form: Any) -> str:
        want(form, self._trt.LayerInformationFormat)
        from tests.fakes.plans import as_json

        if "inspected" in self._engine._facts:  # of a recording
            return str(self._engine._facts["inspected"])
        context = self.execution_context
        fixed = context is not None and all(-1 not in shape for shape in context._shapes.values())
        dynamic = untold(self._trt, self._engine._facts["profile"]) and not fixed
        return as_json(self._engine._facts["layers"], self._trt.plan_form, dynamic=dynamic)
