"""A TensorRT that is not there, in three versions: it has the members of the real bindings and no other.

`surface.json` is recorded from NVIDIA's own bindings of 10.3, 10.16 and 11.4 (`record_surface.py`). Using a member that
a version does not have, setting one, or giving a number where an enum member is wanted fails as it does there. What the
members do follows the documentation and recorded logs: parse errors name the node, a failed allocation ends in "Could
not find any implementation", a cancelled build returns None. An "engine" is its ONNX graph with a header, and it
runs (`engine.py`): ONNX Runtime computes on the addresses that were set, on the fake driver's stream (`libcuda.c`).
Healthy engines round in their own way (`rounding.py`), those with a planted fault compute wrongly (`miscompile.py`).
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from tests.fakes.engine import TYPES, Context, Engine, Inspector, Runtime
from tests.fakes.guarded import MAGIC, NUMPY, Callback, Guarded, Number, heard, say, shape_of, untold, want

SURFACE = json.loads(Path(__file__).with_name("surface.json").read_text())
VERSIONS = {"10.3": "10.3.0", "10.16": "10.16.2.4", "11.4": "11.4.1.12"}
_UNKNOWN = {"10.3": {"Attention", "RMSNormalization"}, "10.16": set(), "11.4": set()}
_OPERATORS = {schema.name for schema in onnx.defs.get_all_schemas()}


def module(version: str, cuda: ctypes.CDLL | None = None, surface: Mapping[str, Any] | None = None) -> Any:
    """`tensorrt` of that version; without `cuda` there is no GPU. `surface` replaces the members that it has.

    faults: makes builds fail: "memory", "strong typing", "silent".
    built: what every build was asked for; begun: a digest of the graph, the outputs and the level of each.
    planted: the faults of its compiler, see `miscompile`; struck: the nodes that each build computes wrongly.
    unmarkable: values that the parser does not keep.
    seed: changes the order in which healthy engines add up.
    recording: answers for the graphs that it has, see `replay`; plan_form: the version whose layer plans are written.
    """
    trt: Any = ModuleType("tensorrt")
    trt.__spec__ = ModuleSpec("tensorrt", None)
    trt.__version__ = VERSIONS[version]
    trt.release, trt.cuda, trt.faults, trt.built = version, cuda, set(), []
    trt.recording, trt.plan_form = None, version
    trt.planted, trt.begun, trt.struck, trt.unmarkable, trt.seed = [], [], [], set(), 0
    for name, members in (surface or SURFACE[version]).items():
        if isinstance(members, dict):
            setattr(trt, name, enum.Enum(name, members, type=Number))
        else:
            behaviour = _BEHAVIOUR.get(name, Guarded)
            setattr(trt, name, type(name, (behaviour,), {"_trt": trt, "_members": frozenset(members), "_name": name}))
    trt.ILogger.Severity = enum.Enum(
        "Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4}, type=Number
    )
    trt.nptype = lambda dtype: NUMPY[dtype.name]
    return trt


class _Builder(Guarded):
    def __init__(self, logger: Any) -> None:
        heard(logger)
        self._logger = logger
        if self._trt.cuda is None:
            say(logger, "ERROR", "CUDA initialization failure with error: 35. Please check your CUDA installation")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> Any:
        want(flags, int)
        strong = 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        allowed = sum({1 << int(flag) for flag in self._trt.NetworkDefinitionCreationFlag})
        if flags & ~allowed:
            raise ValueError(f"unknown network flags {flags:#x}")
        return self._trt.INetworkDefinition(bool(flags & strong) or self._trt.release == "11.4")

    def create_builder_config(self) -> Any:
        return self._trt.IBuilderConfig(self._logger)

    def create_optimization_profile(self) -> Any:
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        return _build(self._trt, self._logger, network, config)


class _BuilderConfig(Guarded):
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._flags: list[str] = []
        self._profiles: list[Any] = []
        self._limits: dict[str, int] = {}
        self._cache: Any = None
        self.profiling_verbosity = self._trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        if hasattr(self._trt, "HardwareCompatibilityLevel"):
            self.hardware_compatibility_level = self._trt.HardwareCompatibilityLevel.NONE
        self.builder_optimization_level = 3
        self.progress_monitor = None

    def set_flag(self, flag: Any) -> None:
        want(flag, self._trt.BuilderFlag)
        self._flags.append(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        want(pool, self._trt.MemoryPoolType)
        self._limits[pool.name] = size

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized: bytes) -> Any:
        known = json.loads(serialized) if serialized else {"version": self._trt.__version__, "timed": 0}
        if known["version"] != self._trt.__version__:
            say(self._logger, "ERROR", "The timing cache is of another TensorRT version")
            return None
        return self._trt.ITimingCache(known)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        want(cache, self._trt.ITimingCache)
        want(ignore_mismatch, bool)
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache


class _TimingCache(Guarded):
    def __init__(self, known: dict[str, Any]) -> None:
        self._known = known

    def serialize(self) -> Any:
        return self._trt.IHostMemory(json.dumps(self._known).encode())


class _HostMemory(Guarded):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bytes__(self) -> bytes:
        return self._data


class _OptimizationProfile(Guarded):
    def __init__(self) -> None:
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, smallest: Any, optimal: Any, largest: Any) -> None:
        self._shapes[name] = [list(smallest), list(optimal), list(largest)]


class _Network(Guarded):
    def __init__(self, strong: bool) -> None:
        self._strong = strong
        self._model: Any = None
        self._marked: list[str] = []
        self._values: dict[str, Any] = {}

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    def get_input(self, index: int) -> Any:
        return self._trt.ITensor(self._model.graph.input[index])

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_layer(self, index: int) -> Any:
        return self._trt.ILayer(self._model.graph.node[index], self)

    def mark_output(self, tensor: Any) -> None:
        want(tensor, self._trt.ITensor)
        if tensor.name in [*self._marked, *(value.name for value in self._model.graph.output)]:
            raise RuntimeError(f"{tensor.name} is an output already")
        self._marked.append(tensor.name)


class _Tensor(Guarded):
    def __init__(self, value: Any, *, is_output: bool = False) -> None:
        self._value, self._is_output = value, is_output

    @property
    def name(self) -> str:
        return str(self._value.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self._value)

    @property
    def dtype(self) -> Any:
        return self._trt.DataType[TYPES.get(self._value.type.tensor_type.elem_type, "FLOAT")]

    @property
    def is_shape_tensor(self) -> bool:
        return False

    @property
    def is_network_output(self) -> bool:
        return self._is_output


class _Layer(Guarded):
    def __init__(self, node: Any, network: Any) -> None:
        self._node, self._network = node, network

    @property
    def type(self) -> Any:
        kinds = {"QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE", "MatMul": "MATRIX_MULTIPLY"}
        return self._trt.LayerType[kinds.get(self._node.op_type, "ELEMENTWISE")]

    @property
    def num_outputs(self) -> int:
        return len(self._node.output)

    def get_output(self, index: int) -> Any:
        name, network = self._node.output[index], self._network
        if name in self._trt.unmarkable:
            return self._trt.ITensor(onnx.helper.make_empty_tensor_value_info(f"(Unnamed Layer* 7) {index}"))
        value = network._values.get(name, onnx.helper.make_empty_tensor_value_info(name))
        outputs = {*network._marked, *(output.name for output in network._model.graph.output)}
        return self._trt.ITensor(value, is_output=name in outputs)


class _Parser(Guarded):
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._logger = network, logger
        self._errors: list[Any] = []

    def parse_from_file(self, path: str) -> bool:
        try:
            self._network._model = onnx.load(path)
        except (OSError, ValueError, onnx.onnx_cpp2py_export.checker.ValidationError) as error:
            self._errors.append(self._trt.ParserError(None, f"Failed to parse the ONNX model: {error}"))
            return False
        inferred = onnx.shape_inference.infer_shapes(self._network._model)
        self._network._values = {value.name: value for value in inferred.graph.value_info}
        if self._trt.recording is not None and (error := self._trt.recording.parse_error(self._network._model)):
            self._errors.append(self._trt.ParserError(*error))
        for node in self._network._model.graph.node:
            if node.op_type in _UNKNOWN[self._trt.release] or node.op_type not in _OPERATORS:
                said = 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
                self._errors.append(self._trt.ParserError(node, said))
                say(self._logger, "ERROR", f"In node 6 with name: {node.name} and operator: {node.op_type}: {said}")
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]


class _ParserError(Guarded):
    def __init__(self, node: Any, said: str) -> None:
        self._node, self._said = node, said

    def desc(self) -> str:
        return self._said

    def node_name(self) -> str:
        return str(self._node.name) if self._node else ""

    def node_operator(self) -> str:
        return str(self._node.op_type) if self._node else ""


_BEHAVIOUR: dict[str, type] = {
    "Builder": _Builder, "IBuilderConfig": _BuilderConfig, "ITimingCache": _TimingCache, "IHostMemory": _HostMemory,
    "IOptimizationProfile": _OptimizationProfile, "INetworkDefinition": _Network, "ITensor": _Tensor, "ILayer": _Layer,
    "OnnxParser": _Parser, "ParserError": _ParserError, "Runtime": Runtime, "ICudaEngine": Engine,
    "IExecutionContext": Context, "EngineInspector": Inspector, "ILogger": Callback, "IProgressMonitor": Callback,
    "IProfiler": Callback,
}  # fmt: skip


def _build(trt: Any, logger: Any, network: Any, config: Any) -> Any:
    """Build, or fail in the way that `faults` asks for, in TensorRT's words."""
    from tests.fakes.plans import as_text, layers_of

    strong = network._strong
    trt.built.append({
        "strong": strong, "flags": [*config._flags], "workspace": config._limits.get("WORKSPACE"),
        "level": config.builder_optimization_level, "hardware": config.hardware_compatibility_level.name,
        "timed": config._cache._known["timed"] if config._cache else None,
    })  # fmt: skip
    asked = json.dumps([network._marked, config.builder_optimization_level]).encode()
    trt.begun.append(hashlib.sha256(network._model.SerializeToString() + asked).hexdigest())
    if trt.recording is not None and trt.recording.knows(network._model):
        return trt.recording.build(trt, logger, network, config)
    for severity, text in _faults(trt, config, strong):
        say(logger, severity, text)
        if text.startswith("IBuilder"):
            return None
    monitor = config.progress_monitor
    if monitor is not None:
        heard(monitor)
        type(monitor).phase_start(monitor, "Building Engine", None, 2)
        if not all(type(monitor).step_complete(monitor, "Building Engine", step) for step in range(2)):
            return None
        type(monitor).phase_finish(monitor, "Building Engine")
    if config._cache is not None:
        config._cache._known["timed"] += 1
    layers = layers_of(network._model)
    profile = config._profiles[0]._shapes if config._profiles else {}
    if "silent" not in trt.faults and config.profiling_verbosity.name == "DETAILED":
        say(logger, "VERBOSE", "Layers:\n" + as_text(layers, trt.plan_form, dynamic=untold(trt, profile)))
    facts = {"version": trt.__version__, "flags": config._flags, "profile": profile, "layers": layers}
    model = _compute(trt, network, config.builder_optimization_level)
    return trt.IHostMemory(MAGIC + json.dumps(facts).encode() + b"\n" + model.SerializeToString())


def _compute(trt: Any, network: Any, level: int) -> Any:
    """Return the graph that the engine computes: with its own roundings, with the compiler's faults, and with marks."""
    from tests.fakes.miscompile import miscompile
    from tests.fakes.rounding import compute_as_engine

    model, struck = miscompile(network._model, trt.planted, trt.release, level, network._marked)
    trt.struck.append(struck)
    model = compute_as_engine(model, seed=[trt.seed, len(trt.built)])
    model.graph.output.extend(network._values[name] for name in network._marked)
    return model


def _faults(trt: Any, config: Any, strong: bool) -> Iterator[tuple[str, str]]:
    if "memory" in trt.faults and config._limits.get("WORKSPACE", 1 << 40) > 1 << 29:
        yield "ERROR", "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)"
        yield (
            "WARNING",
            "Requested amount of GPU memory (15485030400 bytes) could not be allocated. There may not be enough free "
            "memory for allocation to succeed.",
        )
        for _ in range(3):  # the cause is pushed out of the last errors
            yield "ERROR", "Error Code: 9: Skipping tactic 0x0000000000000000 due to exception [tunable_graph.cpp]"
        yield (
            "ERROR",
            "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation for "
            "node {ForeignNode[blocks.0...head]}.)",
        )
    if "strong typing" in trt.faults and strong:
        yield (
            "ERROR",
            "IBuilder::buildSerializedNetwork: Error Code 4: Internal Error (node_7: strongly typed networks do not "
            "support this combination of types)",
        )
