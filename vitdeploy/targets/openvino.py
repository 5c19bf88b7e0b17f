"""OpenVINO: Intel CPUs, GPUs and NPUs (its CPU plug-in runs on any x86 or Arm)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from vitdeploy.environment import available_cores
from vitdeploy.errors import CompileError
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Structure
from vitdeploy.session import Array, Feeds
from vitdeploy.targets import Bundle, Compiled, Target, Watched
from vitdeploy.targets._match import audited, belongs

_MODEL = "model.xml"
_LINEAR_LAYERS = {"FullyConnected", "Convolution", "MatMul"}
_CARRIERS = {"Const", "Reorder", "Transpose", "Convert", "Reshape"}
"""Between a weight and the kernel that reads it; after fusion this side often is what keeps the linear's name."""


class OpenVINO(Target):
    """Compile to OpenVINO IR; run on `device` (CPU, GPU, NPU, AUTO)."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")
    device: str = "CPU"

    def unavailable(self) -> Availability | None:
        """Why it cannot run here: the library, or the device, is missing."""
        if find_spec("openvino") is None:
            return Availability(
                available=False, why="openvino is not installed", fix="pip install 'vitdeploy[openvino]'"
            )
        import openvino as ov

        devices = [*ov.Core().available_devices, "AUTO"]
        if self.device not in devices and self.device not in {d.partition(".")[0] for d in devices}:
            return Availability(
                available=False,
                why=f"OpenVINO finds no device {self.device} here (it finds {', '.join(devices)})",
                fix="Install the device's driver, or use --device CPU.",
            )
        return None

    def dialect(self) -> Dialect:
        """Primitives: its import of `Attention` adds a kernel a site when there is a bias."""
        return Dialect(opset=20, attention="primitives")

    def compile(self, bundle: Bundle, workdir: Path) -> Compiled:
        """Convert to IR and compile once, so that a refusal shows now.

        Raises:
            CompileError: OpenVINO refuses the graph.
        """
        import openvino as ov

        try:
            model = ov.Core().read_model(bundle.graph)
            # Half-precision weights would save disk and change numbers behind the user's back.
            ov.save_model(model, workdir / _MODEL, compress_to_fp16=False)
            _compile(workdir / _MODEL, self.device, self.threads)
        except RuntimeError as error:
            raise _refused(error) from error
        return Compiled(workdir, _MODEL, _engine())

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Read the runtime model: what each kernel is, in which precision, and which nodes it was made from."""
        threads = self.threads or available_cores()
        model = _compile(compiled.folder / compiled.runs, self.device, threads)
        kernels = list(_kernels(model.get_runtime_model()))
        fused, reasons = _fused_sites(bundle.structure, kernels, threads)
        layers = _linear_precisions(bundle.structure, kernels)
        norms = sum(kernel.layer in ("MVN", "LayerNorm") for kernel in kernels)
        return audited(
            self.name, bundle, compiled, fused=fused, reasons=reasons, layers=layers, norms=norms, threads=threads,
            doubts=_doubts(model),
        )  # fmt: skip

    def open(self, compiled: Compiled, precision: str, threads: int | None) -> OpenVINOSession:
        """Open with the latency hint: one stream over all threads."""
        self.require()
        path = compiled.folder / compiled.runs
        return OpenVINOSession(path, self.device, threads or self.threads, name=f"openvino-{precision}")

    def watch(self, graph: Path, compiled: Compiled | None, tensors: Collection[str], work: Path) -> Watched:
        """The compiled model with more outputs. What is fused across one of them otherwise, is not."""
        if compiled is None:
            return super().watch(graph, compiled, tensors, work)
        import openvino as ov

        self.require()
        model = ov.Core().read_model(compiled.folder / compiled.runs)
        names = {name for op in model.get_ordered_ops() for output in op.outputs() for name in output.get_names()}
        given = {name for output in model.outputs for name in output.get_names()}
        found = names & set(tensors)
        model.add_outputs(sorted(found - given))
        session = OpenVINOSession(model, self.device, self.threads, name="openvino", wanted=found)
        told = "OpenVINO, compiled as it runs, but for fusions across the tensors that are compared"
        return Watched(session, frozenset(found), "compiled", told)


class OpenVINOSession(AbstractContextManager["OpenVINOSession"]):
    """A compiled model with one inference request."""

    def __init__(
        self, model: Any, device: str, threads: int | None, *, name: str, wanted: Collection[str] = ()
    ) -> None:
        """`model` is a file, or what was read from one; tensors `wanted` go by that name, whatever else they have."""
        model = _compile(model, device, threads)
        self._request = model.create_infer_request()
        self._names = [tuple(output.get_names() & set(wanted)) or (output.get_any_name(),) for output in model.outputs]
        self.name = name
        self.threads: int | None = _property(model, "INFERENCE_NUM_THREADS") or threads
        self.effective: Mapping[str, str] = {
            "engine": _engine(),
            "device": device,
            "streams": str(_property(model, "NUM_STREAMS")),
            "inference_precision": _precision_hint(model),
        }

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name, copied to arrays of the caller's."""
        result = self._request.infer(dict(feeds), share_inputs=True)
        return {name: result[index] for index, names in enumerate(self._names) for name in names}

    def close(self) -> None:
        """Free the request and with it the model."""
        del self._request

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class _Kernel:
    """A node of the runtime model: its kind and precision, the ONNX nodes it was made from, and its weights' names."""

    def __init__(self, op: Any) -> None:
        info = {key: str(value.astype(str)) for key, value in op.get_rt_info().items() if hasattr(value, "astype")}
        self.layer = info.get("layerType", "")
        self.names = {n for n in info.get("originalLayersNames", "").split(",") if n}
        self.precision = _precision(info.get("primitiveType", ""), info.get("runtimePrecision", ""))
        self.weight_names = set(_carried_names(op)) if self.layer in _LINEAR_LAYERS else set()
        self.title = f"{self.layer} {info.get('primitiveType', '')}".strip()


def _kernels(runtime_model: Any) -> Iterator[_Kernel]:
    for op in runtime_model.get_ordered_ops():
        yield _Kernel(op)


def _carried_names(op: Any, depth: int = 4) -> Iterator[str]:
    """Original names of what carries the weight into `op`."""
    if depth == 0:
        return
    for index in range(1 if depth == 4 else 0, op.get_input_size()):
        source = op.input_value(index).get_node()
        info = source.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) in _CARRIERS:
            yield from (n for n in str(info["originalLayersNames"].astype(str)).split(",") if n)
            yield from _carried_names(source, depth - 1)


def _precision(primitive: str, runtime: str) -> str:
    """The executed precision: a kernel's name tells it (`brgemm_avx512_amx_i8`), the declared type only asks for it."""
    names = {"i8": "int8", "u8": "int8", "bf16": "bf16", "f16": "fp16", "f32": "fp32"}
    return names.get(primitive.rpartition("_")[2]) or names.get(runtime, runtime or "other")


def _fused_sites(structure: Structure, kernels: list[_Kernel], threads: int) -> tuple[dict[str, str], dict[str, str]]:
    fused, reasons = {}, {}
    for site in structure.attention:
        core = {n for n in site.nodes if n.endswith(("/qk", "/softmax", "/pv"))}
        holder = next((k for k in kernels if core and core <= k.names), None)
        if holder is not None:
            fused[site.name] = holder.title
            continue
        parts = sorted({k.title for k in kernels if core & k.names})
        if parts:
            reasons[site.name] = (
                f"runs as {' + '.join(parts)} with {threads} threads: OpenVINO fuses only when heads or tokens split "
                "evenly over the threads"
            )
    return fused, reasons


def _linear_precisions(structure: Structure, kernels: list[_Kernel]) -> dict[str, str]:
    found: dict[str, str] = {}
    products = [k for k in kernels if k.layer in _LINEAR_LAYERS]
    for linear in structure.linears:
        for kernel in products:
            names = kernel.names | kernel.weight_names
            if linear.initializer in names or any(belongs(name, node) for node in linear.nodes for name in names):
                found[linear.name] = kernel.precision
                break
    return found


def _doubts(model: Any) -> Iterator[str]:
    effective = _precision_hint(model)
    if effective != "f32":
        yield f"asked for f32, the engine computes in {effective}"


def _compile(path: Any, device: str, threads: int | None) -> Any:
    """Compile for latency in float32: on CPUs with AMX the default is bfloat16, which nobody asked for."""
    import openvino as ov

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if device.startswith("CPU"):
        config["INFERENCE_NUM_THREADS"] = threads or available_cores()
    try:
        return ov.Core().compile_model(path, device, config)
    except RuntimeError as error:
        raise _refused(error) from error


def _engine() -> str:
    """Name and version, without the build's commit and branch."""
    import openvino as ov

    return f"openvino {ov.__version__.partition('-')[0]}"


def _refused(error: Exception) -> CompileError:
    reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    return CompileError(
        f"OpenVINO refuses the graph: {reason.strip()[:200]}", fix="Try another --precision or --device."
    )


def _property(model: Any, name: str) -> Any:
    try:
        return model.get_property(name)
    except RuntimeError:
        return None


def _precision_hint(model: Any) -> str:
    hint = _property(model, "INFERENCE_PRECISION_HINT")
    return "unknown" if hint is None else str(hint.get_type_name() if hasattr(hint, "get_type_name") else hint)
