"""OpenVINO: Intel CPUs, GPUs and NPUs (its CPU plug-in runs on any x86 or Arm)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vitdeploy.environment import available_cores
from vitdeploy.errors import CompileError
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Structure
from vitdeploy.targets import Bundle, Compiled, Target
from vitdeploy.targets._match import audited, belongs
from vitdeploy.targets._openvino_session import Engine, OpenVINOSession, precision_hint, refused, version

_MODEL = "model.xml"
_LINEAR_LAYERS = {"FullyConnected", "Convolution", "MatMul"}
_CARRIERS = {"Const", "Reorder", "Transpose", "Convert", "Reshape"}
"""Between a weight and the kernel that reads it; after fusion this side often is what keeps the linear's name."""


class OpenVINO(Target):
    """Compile to OpenVINO IR; run on `device` (CPU, GPU, NPU, AUTO).

    `streams`: inferences at a time, where the device lets one choose; None leaves it to the hint (latency: 1).
    """

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")
    device: str = "CPU"
    streams: Annotated[int, Field(ge=1)] | None = None
    hint: Literal["latency", "throughput"] = "latency"

    @model_validator(mode="after")
    def _options_fit_the_device(self) -> OpenVINO:
        if self.streams is not None and not self.device.startswith(("CPU", "GPU")):
            raise ValueError(f"streams cannot be chosen on {self.device}: leave them out, or use hint: throughput")
        if self.threads is not None and not self.device.startswith(("CPU", "AUTO")):
            raise ValueError(f"threads are the CPU's, and {self.device} has none to choose: leave them out")
        return self

    def unavailable(self) -> Availability | None:
        """Why it cannot run here: the library, or the device, is missing."""
        if find_spec("openvino") is None:
            return Availability(
                available=False, why="openvino is not installed", fix="pip install 'vitdeploy[openvino]'"
            )
        import openvino as ov

        here = [*ov.Core().available_devices, "AUTO"]
        known = {*here, *(device.partition(".")[0] for device in here)}
        for device in filter(None, re.split("[:,]", self.device)):  # AUTO:GPU,CPU names its candidates
            if device not in known:
                return Availability(
                    available=False,
                    why=f"OpenVINO finds no device {device} here (it finds {', '.join(here)})",
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

        if "NPU" in self.device and not bundle.batch.static:
            raise CompileError(
                f"NPUs take static shapes only, not a batch of {bundle.batch}", fix="Give --batch N, one size."
            )
        try:
            model = ov.Core().read_model(bundle.graph)
            # Half-precision weights would save disk and change numbers behind the user's back.
            ov.save_model(model, workdir / _MODEL, compress_to_fp16=False)
            self.engine().compile(workdir / _MODEL)
        except RuntimeError as error:
            raise refused(error) from error
        return Compiled(workdir, _MODEL, version())

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Read the runtime model: what each kernel is, in which precision, and which nodes it was made from."""
        threads = self.threads or available_cores()
        model = self.engine(threads).compile(compiled.folder / compiled.runs)
        kernels = list(_kernels(model.get_runtime_model()))
        fused, reasons = _fused_sites(bundle.structure, kernels, threads)
        layers = _linear_precisions(bundle.structure, kernels)
        norms = sum(kernel.layer in ("MVN", "LayerNorm") for kernel in kernels)
        return audited(
            self.name, bundle, compiled, fused=fused, reasons=reasons, layers=layers, norms=norms, threads=threads,
            doubts=_doubts(model),
        )  # fmt: skip

    def open(self, compiled: Compiled, precision: str, threads: int | None) -> OpenVINOSession:
        """Open with the hint; for latency that is one stream over all threads."""
        self.require()
        return OpenVINOSession(compiled.folder / compiled.runs, self.engine(threads), name=f"openvino-{precision}")

    def open_plain(self, graph: Path, threads: int | None) -> OpenVINOSession:
        """Open an ONNX file as it is, to compare with; float32."""
        return OpenVINOSession(graph, self.engine(threads), name="openvino-fp32 (plain)")

    def engine(self, threads: int | None = None) -> Engine:
        """How OpenVINO is asked to run; `threads` wins over the recipe's."""
        return Engine(self.device, threads or self.threads, self.streams, self.hint)


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
    effective = precision_hint(model)
    if effective != "f32":
        yield f"asked for f32, the engine computes in {effective}"
